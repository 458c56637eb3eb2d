//! `wasi:config/store`: the installation's settings. The key `settings` is the whole object, each top-level setting has its
//! own key: a string as it is, anything else as JSON.

use serde_json::{Map, Value};
use wasmtime::component::{HasSelf, Linker};

use crate::bindings::wasi::config::store::{self, Error};
use crate::guest::Guest;
use crate::scope::Ended;

/// The key under which the whole object is found.
const WHOLE: &str = "settings";

/// The settings, read as JSON only when a guest asks for one of them.
pub(crate) struct State {
    json: String,
    parsed: Option<Map<String, Value>>,
}

impl State {
    pub(crate) fn new(json: String) -> Self {
        Self { json, parsed: None }
    }

    fn parsed(&mut self) -> Result<&Map<String, Value>, Ended> {
        if self.parsed.is_none() {
            let map = serde_json::from_str(&self.json)
                .map_err(|error| Ended::HostFault(format!("the settings are not a JSON object: {error}")))?;
            self.parsed = Some(map);
        }
        Ok(self.parsed.get_or_insert_default())
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

pub(crate) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    store::add_to_linker::<Guest, HasSelf<Guest>>(linker, |guest| guest)
}

impl store::Host for Guest {
    fn get(&mut self, key: String) -> wasmtime::Result<Result<Option<String>, Error>> {
        self.scope.host_call(key.len())?;
        if key == WHOLE {
            return Ok(Ok(Some(self.config.json.clone())));
        }
        Ok(Ok(self.config.parsed()?.get(&key).map(text)))
    }

    fn get_all(&mut self) -> wasmtime::Result<Result<Vec<(String, String)>, Error>> {
        self.scope.host_call(0)?;
        let mut all = vec![(WHOLE.to_owned(), self.config.json.clone())];
        let parsed = self.config.parsed()?;
        all.extend(parsed.iter().filter(|(key, _)| *key != WHOLE).map(|(key, value)| (key.clone(), text(value))));
        Ok(Ok(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_raw_and_the_rest_is_json() {
        let mut state = State::new(r#"{"a":"x","b":{"c":[1]},"d":null}"#.to_owned());
        let parsed = state.parsed().unwrap();
        assert_eq!(parsed.values().map(text).collect::<Vec<_>>(), ["x", r#"{"c":[1]}"#, "null"]);
        assert!(State::new("[1]".to_owned()).parsed().is_err());
    }
}
