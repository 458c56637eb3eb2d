//! A plugin version as calls see it: its manifest, and validators for what its schemas promise.

use std::sync::{Arc, OnceLock};

use bulkhead_model::limits::ContributionKind;
use bulkhead_model::manifest::{Contribution, schema};
use bulkhead_store::StoreError;
use bulkhead_store::plugin::Plugin;
use jsonschema::Validator;
use serde_json::Value;

use crate::Problem;

/// Problems that one answer names.
const PROBLEMS_MAX: usize = 20;
/// Characters of one problem's message: a validator's message may quote the value.
const MESSAGE_CHARS_MAX: usize = 300;
/// A value this large may take a validator long enough to hold up other work of the thread.
const BLOCKING_FROM_BYTES: usize = 1024;

/// Which of a contribution's schemas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Settings,
    Input,
    Output,
}

impl Which {
    fn of(self, contribution: &Contribution) -> Option<&Value> {
        match self {
            Self::Settings => contribution.settings.as_ref(),
            Self::Input => contribution.input.as_ref(),
            Self::Output => contribution.output.as_ref(),
        }
    }
}

/// Compiled when first needed.
#[derive(Default)]
struct Schemas {
    settings: OnceLock<Arc<Validator>>,
    input: OnceLock<Arc<Validator>>,
    output: OnceLock<Arc<Validator>>,
}

pub(crate) struct Contract {
    pub(crate) plugin: Plugin,
    /// In the order of `Manifest::contributions`.
    schemas: Vec<Schemas>,
}

impl Contract {
    pub(crate) fn new(plugin: Plugin) -> Self {
        let schemas = plugin.manifest.contributions().map(|_| Schemas::default()).collect();
        Self { plugin, schemas }
    }

    /// The contribution of this name, with its place in the manifest.
    pub(crate) fn find(&self, name: &str) -> Option<(usize, ContributionKind, &Contribution)> {
        let mut all = self.plugin.manifest.contributions().enumerate();
        all.find(|(_, (_, contribution))| contribution.name.as_str() == name)
            .map(|(at, (kind, found))| (at, kind, found))
    }

    /// The validator of one schema of the contribution at `at`; `None` when it has no such schema.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`]: schemas were checked at upload.
    pub(crate) fn validator(&self, at: usize, which: Which) -> Result<Option<Arc<Validator>>, StoreError> {
        let (Some(schemas), Some((_, contribution))) =
            (self.schemas.get(at), self.plugin.manifest.contributions().nth(at))
        else {
            return Ok(None);
        };
        let Some(schema) = which.of(contribution) else { return Ok(None) };
        let cell = match which {
            Which::Settings => &schemas.settings,
            Which::Input => &schemas.input,
            Which::Output => &schemas.output,
        };
        if let Some(compiled) = cell.get() {
            return Ok(Some(Arc::clone(compiled)));
        }
        let compiled = schema::compile(schema)
            .map_err(|error| StoreError::Corrupt { what: "plugin manifest", why: error.to_string() })?;
        Ok(Some(Arc::clone(cell.get_or_init(|| Arc::new(compiled)))))
    }

    /// What is wrong with an installation's settings, which every contribution shares; empty when all is well.
    ///
    /// # Errors
    /// As [`validator`](Self::validator).
    pub(crate) fn check_settings(&self, settings: &Value) -> Result<Vec<Problem>, StoreError> {
        let Some(object) = settings.as_object() else {
            return Ok(vec![Problem::new("/settings", "not-an-object", "settings are a JSON object")]);
        };
        let mut described = false;
        for (at, _) in self.plugin.manifest.contributions().enumerate() {
            let Some(validator) = self.validator(at, Which::Settings)? else { continue };
            described = true;
            let problems = problems(&validator, settings, "/settings");
            if !problems.is_empty() {
                return Ok(problems);
            }
        }
        if !described && !object.is_empty() {
            let message = format!("{} has no settings", self.plugin.name);
            return Ok(vec![Problem::new("/settings", "unknown-field", message)]);
        }
        Ok(Vec::new())
    }
}

/// What `validator` finds wrong with `value`, with JSON pointers below `path`.
fn problems(validator: &Validator, value: &Value, path: &str) -> Vec<Problem> {
    let problem = |error: jsonschema::ValidationError<'_>| {
        let message = error.to_string();
        let message = match message.char_indices().nth(MESSAGE_CHARS_MAX) {
            Some((end, _)) => format!("{}…", &message[..end]),
            None => message,
        };
        Problem::new(format!("{path}{}", error.instance_path()), "schema", message)
    };
    validator.iter_errors(value).take(PROBLEMS_MAX).map(problem).collect()
}

/// As [`problems`], for several values (each with its path) of `bytes` altogether; large ones on a thread that may block, since
/// a careless schema can take seconds over them.
pub(crate) async fn check(validator: Arc<Validator>, values: Vec<(String, Value)>, bytes: usize) -> Vec<Problem> {
    let all = move || {
        let each = values.iter().flat_map(|(path, value)| problems(&validator, value, path));
        each.take(PROBLEMS_MAX).collect()
    };
    if bytes < BLOCKING_FROM_BYTES {
        return all();
    }
    match tokio::task::spawn_blocking(all).await {
        Ok(problems) => problems,
        Err(error) => vec![Problem::new("", "schema", format!("the check broke down: {error}"))],
    }
}
