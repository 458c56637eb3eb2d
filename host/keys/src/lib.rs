//! Encryption at rest: what a sealed value looks like, what it is bound to, which key opens it, and how long a key lives.
//!
//! Three levels: a **root key**, which the host's operator keeps outside of the database, wraps each organization's **organization
//! key**; that wraps the organization's **data keys**; and a data key gives every single value a key of its own (HKDF with a salt of
//! the value's), so that no two values share a key and no nonce can meet another. Each envelope commits to its key and is bound to
//! its place ([`context`]), which whoever opens it states anew and which is never read from storage.
//!
//! The crate is pure: it depends on none of the host's crates, does no I/O, and takes randomness as arguments.

pub mod context;
pub mod envelope;
pub mod index;
pub mod key;
pub mod life;
pub mod primitives;
pub mod record;
pub mod root;
pub mod wrap;

pub use context::{Context, Purpose};
pub use envelope::{Envelope, KeyId};
pub use key::{Key, KeyError};
pub use life::{KeyState, Level};
pub use root::{RootId, RootKey, RootKeys, RootKeysError, RootProvider, RootStanding};
