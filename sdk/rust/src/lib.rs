//! Write Bulkhead plugins in Rust.
//!
//! A plugin is a library (`crate-type = ["cdylib", "rlib"]`) with ordinary functions and one macro for each kind of
//! contribution:
//!
//! ```
//! use bulkhead_sdk::{Context, Failure, http, log};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Deserialize)]
//! struct Input {
//!     issue: u64,
//! }
//!
//! #[derive(Serialize)]
//! struct Output {
//!     status: u16,
//! }
//!
//! fn close_issue(ctx: &Context, input: Input) -> Result<Output, Failure> {
//!     log::info!("closing issue {}", input.issue);
//!     let response = http::post(format!("https://tracker.example/issues/{}/close", input.issue))
//!         .header("idempotency-key", &ctx.idempotency_key)
//!         .send()?;
//!     Ok(Output { status: response.status })
//! }
//!
//! bulkhead_sdk::actions! { "close-issue" => close_issue }
//! # fn main() {}
//! ```
//!
//! | macro | function | kind |
//! | --- | --- | --- |
//! | [`actions!`] | `fn(&Context, Input) -> Result<Output, Failure>` | effectful |
//! | [`channels!`] | `fn(&Context, Notification) -> Result<Receipt, Failure>` | effectful |
//! | [`factors!`] | `fn(&Settings, &Fields) -> Score` | pure |
//!
//! Any error converts to a [`Failure`] by `?`. Inside a guest the capabilities ([`http`], [`secret`], [`log`], [`clock`], [`Context::settings`]) call the
//! host; natively a [`testing::Host`] takes its place, so that `cargo test` runs a plugin without WebAssembly. What each
//! capability means, and what it needs in the manifest, is said in the WIT files.

pub mod clock;
mod context;
#[doc(hidden)]
pub mod exports;
mod factor;
mod failure;
#[cfg(target_family = "wasm")]
#[doc(hidden)]
pub mod guest;
pub mod http;
pub mod log;
pub mod secret;
#[cfg(not(target_family = "wasm"))]
pub mod testing;

pub use context::Context;
pub use factor::Score;
pub use failure::Failure;
pub use secret::secret;

/// What stands behind the capabilities: the host's imports in a guest, the fake natively.
#[cfg(target_family = "wasm")]
use guest as platform;
#[cfg(not(target_family = "wasm"))]
use testing::platform;

/// Exports actions: `actions! { "name-in-the-manifest" => function, … }`, once in a crate.
///
/// It defines the type `Actions`, which [`testing::fixtures`](crate::testing) runs natively.
#[macro_export]
macro_rules! actions {
    ($($name:literal => $function:path),+ $(,)?) => {
        /// The actions of this plugin.
        pub struct Actions;

        impl $crate::exports::Contributions for Actions {
            const NAMES: &'static [&'static str] = &[$($name),+];

            fn call(name: &str, ctx: &$crate::Context, input: &str) -> ::core::result::Result<String, $crate::Failure> {
                match name {
                    $($name => $crate::exports::respond($function, ctx, input),)+
                    _ => Err($crate::exports::unknown("action", name)),
                }
            }
        }

        #[cfg(target_family = "wasm")]
        const _: () = {
            impl $crate::guest::ActionGuest for Actions {
                fn run(name: String, ctx: $crate::guest::CallContext, input: String) -> ::core::result::Result<String, $crate::guest::WitFailure> {
                    $crate::guest::answer::<Self>(&name, ctx, &input)
                }
            }
            $crate::guest::action::export_action!(Actions with_types_in $crate::guest::action);
        };
    };
}

/// Exports channels: `channels! { "name-in-the-manifest" => function, … }`, once in a crate.
///
/// It defines the type `Channels`, which [`testing::fixtures`](crate::testing) runs natively.
#[macro_export]
macro_rules! channels {
    ($($name:literal => $function:path),+ $(,)?) => {
        /// The channels of this plugin.
        pub struct Channels;

        impl $crate::exports::Contributions for Channels {
            const NAMES: &'static [&'static str] = &[$($name),+];

            fn call(name: &str, ctx: &$crate::Context, input: &str) -> ::core::result::Result<String, $crate::Failure> {
                match name {
                    $($name => $crate::exports::respond($function, ctx, input),)+
                    _ => Err($crate::exports::unknown("channel", name)),
                }
            }
        }

        #[cfg(target_family = "wasm")]
        const _: () = {
            impl $crate::guest::ChannelGuest for Channels {
                fn send(name: String, ctx: $crate::guest::CallContext, notification: String) -> ::core::result::Result<String, $crate::guest::WitFailure> {
                    $crate::guest::answer::<Self>(&name, ctx, &notification)
                }
            }
            $crate::guest::channel::export_channel!(Channels with_types_in $crate::guest::channel);
        };
    };
}

/// Exports factors: `factors! { "name-in-the-manifest" => function, … }`, once in a crate.
///
/// Settings are read once for a batch, fields once for each lead. A lead whose fields do not have the expected shape gets 0 points and
/// a reason that says so.
///
/// ```
/// use bulkhead_sdk::Score;
/// use serde::Deserialize;
///
/// #[derive(Deserialize)]
/// struct Settings {
///     points: f64,
/// }
///
/// #[derive(Deserialize)]
/// struct Fields {
///     phone: Option<String>,
/// }
///
/// fn has_phone(settings: &Settings, fields: &Fields) -> Score {
///     match &fields.phone {
///         Some(_) => Score::new(settings.points, "can be called"),
///         None => Score::none("no phone number"),
///     }
/// }
///
/// bulkhead_sdk::factors! { "has-phone" => has_phone }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! factors {
    ($($name:literal => $function:path),+ $(,)?) => {
        /// The factors of this plugin.
        pub struct Factors;

        impl $crate::exports::Scoring for Factors {
            const NAMES: &'static [&'static str] = &[$($name),+];

            fn score(name: &str, settings: &str, leads: &[$crate::exports::LeadFacts]) -> ::core::result::Result<Vec<$crate::Score>, String> {
                match name {
                    $($name => $crate::exports::score_batch($function, settings, leads),)+
                    _ => Err($crate::exports::unknown("factor", name).to_string()),
                }
            }
        }

        #[cfg(target_family = "wasm")]
        const _: () = {
            impl $crate::guest::FactorGuest for Factors {
                fn score(name: String, settings: String, leads: Vec<$crate::guest::WitLeadFacts>) -> ::core::result::Result<Vec<$crate::guest::WitContribution>, String> {
                    $crate::guest::answer_batch::<Self>(&name, &settings, leads)
                }
            }
            $crate::guest::factor::export_factor!(Factors with_types_in $crate::guest::factor);
        };
    };
}
