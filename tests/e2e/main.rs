//! The real binary, as a newcomer and an operator meet it: demo, deliveries, wrong input, `kill -9`; on both databases.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

mod api;
mod audit;
mod backup;
mod bad_input;
mod demo;
mod github;
mod keys;
mod kill;
mod limits;
mod nodes;
mod operator;
mod people;
mod server;
mod signed;

/// Generates `name::sqlite` and `name::postgres` from one body.
macro_rules! on_both {
    ($(#[$attribute:meta])* fn $name:ident($place:ident: Place) $body:block) => {
        mod $name {
            use super::*;

            $(#[$attribute])*
            fn body($place: Place) $body

            #[test]
            fn sqlite() {
                body(Place::sqlite());
            }

            #[test]
            fn postgres() {
                if let Some(place) = Place::postgres() {
                    body(place);
                }
            }
        }
    };
}
pub(crate) use on_both;
