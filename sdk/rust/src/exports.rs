//! What the macros expand to. Not for direct use.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Context, Failure, Score};

/// The actions or the channels of a plugin.
pub trait Contributions {
    const NAMES: &'static [&'static str];

    /// JSON text in, JSON text out.
    fn call(name: &str, ctx: &Context, input: &str) -> Result<String, Failure>;
}

/// The factors of a plugin.
pub trait Scoring {
    const NAMES: &'static [&'static str];

    fn score(name: &str, settings: &str, leads: &[LeadFacts]) -> Result<Vec<Score>, String>;
}

/// Characters of somebody else's data that a message repeats.
const QUOTED_CHARS_MAX: usize = 200;

/// One lead as the host gives it.
#[derive(Clone, Debug)]
pub struct LeadFacts {
    pub id: String,
    /// A JSON object.
    pub fields: String,
}

pub fn respond<I, O, E>(
    function: impl Fn(&Context, I) -> Result<O, E>,
    ctx: &Context,
    input: &str,
) -> Result<String, Failure>
where
    I: DeserializeOwned,
    O: Serialize,
    E: Into<Failure>,
{
    let input = serde_json::from_str(input)
        .map_err(|error| Failure::invalid_input(misfit("the input does not fit", &error)))?;
    let output = function(ctx, input).map_err(Into::into)?;
    serde_json::to_string(&output)
        .map_err(|error| Failure::permanent(format!("the result cannot be written as JSON: {error}")))
}

pub fn score_batch<S, F>(
    function: impl Fn(&S, &F) -> Score,
    settings: &str,
    leads: &[LeadFacts],
) -> Result<Vec<Score>, String>
where
    S: DeserializeOwned,
    F: DeserializeOwned,
{
    let settings = if settings.is_empty() { "{}" } else { settings };
    let settings: S = serde_json::from_str(settings).map_err(|error| misfit("the settings do not fit", &error))?;
    let score = |lead: &LeadFacts| match serde_json::from_str::<F>(&lead.fields) {
        Ok(fields) => function(&settings, &fields),
        Err(error) => Score::none(misfit("the fields could not be read", &error)),
    };
    Ok(leads.iter().map(score).collect())
}

pub fn unknown(kind: &str, name: &str) -> Failure {
    Failure::permanent(format!("this component has no {kind} named {name}: does plugin.toml match the code?"))
}

/// What is wrong with JSON. Parsers quote what they found, which may be as long as the input.
pub(crate) fn misfit(what: &str, error: &serde_json::Error) -> String {
    let error = error.to_string();
    match error.char_indices().nth(QUOTED_CHARS_MAX) {
        Some((end, _)) => format!("{what}: {}…", &error[..end]),
        None => format!("{what}: {error}"),
    }
}
