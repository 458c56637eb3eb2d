//! `wasi:logging`: lines of the call's log.

use wasmtime::component::{HasSelf, Linker};

use crate::bindings::wasi::logging::logging::{self, Level};
use crate::guest::Guest;

pub(crate) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    logging::add_to_linker::<Guest, HasSelf<Guest>>(linker, |guest| guest)
}

impl logging::Host for Guest {
    fn log(&mut self, level: Level, context: String, message: String) -> wasmtime::Result<()> {
        self.scope.host_call(context.len() + message.len())?;
        let level = match level {
            Level::Trace => "trace",
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
            Level::Critical => "critical",
        };
        if context.is_empty() {
            self.scope.log.message(level, &message);
        } else {
            self.scope.log.message(level, &format!("{context}: {message}"));
        }
        Ok(())
    }
}
