//! How the OpenAPI document describes the model's types inside a call. The model knows nothing of OpenAPI; a test compares the
//! names with what the model writes.

#![expect(dead_code, reason = "only the document reads these fields")]

use utoipa::ToSchema;

/// What a call used, in the units of its limits.
#[derive(ToSchema)]
#[schema(as = Usage)]
pub(crate) struct UsageSchema {
    /// About one unit per instruction.
    fuel: u64,
    wall_ms: u64,
    memory_peak_bytes: u64,
    table_elements: u64,
    input_bytes: u64,
    output_bytes: u64,
    log_lines: u32,
    log_bytes: u64,
    host_calls: u32,
    host_bytes: u64,
    requests: u32,
    response_bytes: u64,
}

/// The limits that were in force.
#[derive(ToSchema)]
#[schema(as = Limits)]
pub(crate) struct LimitsSchema {
    fuel: u64,
    /// Of the whole call, host calls included.
    wall_ms: u64,
    /// Over all memories of the instance.
    memory_bytes: u64,
    table_elements: u64,
    core_instances: u32,
    memories: u32,
    tables: u32,
    handles: u32,
    host_bytes_per_host_call: u64,
    host_bytes_per_call: u64,
    input_bytes: u64,
    output_bytes: u64,
    log_lines: u32,
    log_bytes: u64,
    requests: u32,
    response_bytes: u64,
    json_depth: u32,
    json_string_bytes: u64,
    json_list_len: u64,
}

/// Why a call returned nothing.
#[derive(ToSchema)]
#[schema(as = CallError)]
pub(crate) struct CallErrorSchema {
    /// Stable: `invalid-input`, `transient`, `permanent`, `refused`, `trap`, `fuel`, `memory`, `deadline`, …
    code: String,
    message: String,
    /// Trying again may help.
    retryable: bool,
    #[schema(required = false)]
    retry_after_ms: Option<u64>,
    /// Which limit was reached, by its name in `limits`.
    #[schema(required = false)]
    limit: Option<String>,
}

/// One line that the plugin wrote.
#[derive(ToSchema)]
#[schema(as = LogLine)]
pub(crate) struct LogLineSchema {
    /// `trace`, `debug`, `info`, `warn`, `error`, `critical`, or `stdout`, `stderr`.
    level: String,
    message: String,
}

/// One outbound request.
#[derive(ToSchema)]
#[schema(as = EgressRecord)]
pub(crate) struct EgressSchema {
    method: String,
    /// `https://host:port`
    origin: String,
    /// Without its query.
    path: String,
    /// Left out when no response arrived.
    #[schema(required = false)]
    status: Option<u16>,
    request_bytes: u64,
    response_bytes: u64,
    duration_ms: u64,
    /// Why it was refused or failed.
    #[schema(required = false)]
    error: Option<String>,
}

/// Something that the plugin asked for without a grant.
#[derive(ToSchema)]
#[schema(as = Refusal)]
pub(crate) struct RefusalSchema {
    /// `http`, `secret`, …
    kind: String,
    target: String,
    reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_model::call::{CallError, EgressRecord, LogLine, Refusal};
    use bulkhead_model::limits::{ContributionKind, Limits, Usage};
    use serde::Serialize;
    use std::collections::BTreeSet;
    use utoipa::PartialSchema;

    fn compare<S: PartialSchema>(value: impl Serialize) {
        let written = serde_json::to_value(value).unwrap();
        let described = serde_json::to_value(S::schema()).unwrap();
        let names =
            |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<String>>();
        assert_eq!(names(&described["properties"]), names(&written));
    }

    #[test]
    fn the_document_names_what_the_model_writes() {
        compare::<UsageSchema>(Usage::default());
        compare::<LimitsSchema>(Limits::default_for(ContributionKind::Action));
        let (text, some) = (String::new, Some(1));
        let error =
            CallError { code: text(), message: text(), retryable: true, retry_after_ms: some, limit: Some(text()) };
        compare::<CallErrorSchema>(error);
        compare::<LogLineSchema>(LogLine { level: text(), message: text() });
        compare::<RefusalSchema>(Refusal { kind: text(), target: text(), reason: text() });
        compare::<EgressSchema>(EgressRecord {
            method: text(),
            origin: text(),
            path: text(),
            status: Some(200),
            request_bytes: 0,
            response_bytes: 0,
            duration_ms: 0,
            error: Some(text()),
        });
    }
}
