use serde::de::DeserializeOwned;

use crate::exports::misfit;
use crate::failure::Failure;
use crate::platform;

/// Who calls, why, and under which key. The fields are those of `call-context` in the WIT file `types`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    pub org: String,
    pub installation: String,
    pub call: String,
    pub run: Option<String>,
    pub step: Option<String>,
    /// Counts from 1.
    pub attempt: u32,
    /// The same for every attempt at the same work: send it along.
    pub idempotency_key: String,
    /// Milliseconds that the whole call may take.
    pub deadline_ms: u64,
    /// BCP 47 tag.
    pub locale: Option<String>,
}

impl Context {
    /// The installation's settings. An installation without settings has the empty object.
    ///
    /// Fails with [`Failure::InvalidInput`] when they do not have the shape of `T`.
    pub fn settings<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        let text = self.setting("settings")?;
        serde_json::from_str(text.as_deref().unwrap_or("{}"))
            .map_err(|error| Failure::invalid_input(misfit("the settings do not fit", &error)))
    }

    /// One top-level setting: a string as it is, anything else as JSON text.
    pub fn setting(&self, name: &str) -> Result<Option<String>, Failure> {
        platform::setting(name)
            .map_err(|message| Failure::transient(format!("the settings could not be read: {message}")))
    }
}
