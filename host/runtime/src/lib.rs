//! The sandbox: runs plugins (WebAssembly components) under mandatory limits, with nothing but what they were granted.
//!
//! **Forbidden here:** SQL and the web framework. Bytes leave the machine only through [`egress`].
//!
//! One call's path: [`Runtime::prepare`] turns a digest into a [`Prepared`] component (inspected, compiled in a child process,
//! sealed in the cache, linked once); [`Runtime::call`] makes a fresh instance of it, runs one contribution and reports
//! how it ended. A call never fails: everything is an [`Outcome`](bulkhead_model::call::Outcome).
//!
//! | question | file |
//! | --- | --- |
//! | what is a package allowed to look like? | `package` |
//! | how is it compiled, kept and found again? | `compiler`, `cache`, `registry` |
//! | how does one call run and end? | `call`, `places`, `control`, `ticker`, `limiter` |
//! | what may a guest import, and what does it get? | `capability` |
//! | how does a request leave the machine? | `egress` |

mod bindings;
mod cache;
mod call;
mod call_log;
mod capability;
pub mod compiler;
mod control;
mod digest;
pub mod egress;
mod engine;
mod guest;
mod limiter;
mod output;
pub mod package;
mod places;
mod registry;
mod runtime;
mod scope;
mod secret_source;
mod ticker;

pub use call::{CallContext, CallRequest};
pub use compiler::CompilerCommand;
pub use control::{CallControl, Stop, Validity};
pub use digest::{Digest, DigestError};
pub use engine::{Allocation, EngineError};
pub use package::{EmbedError, PackageError, PackageInfo, embed_manifest};
pub use registry::{LoadError, PrepareError, Prepared, PreparedStats};
pub use runtime::{Runtime, RuntimeConfig, StartError};
pub use secret_source::{NoSecrets, SecretError, SecretSource};
