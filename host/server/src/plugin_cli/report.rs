//! What the commands print.

use bulkhead_model::call::CallReport;
use bulkhead_model::limits::{Limits, Usage};
use serde_json::{Value, json};

/// One line of JSON on stdout.
pub(super) fn print_json(value: &Value) {
    println!("{value}");
}

/// Bytes for people.
pub(super) fn bytes(count: u64) -> String {
    let (unit, divisor) = match count {
        0..1_024 => return format!("{count} B"),
        1_024..1_048_576 => ("KiB", 1_024),
        _ => ("MiB", 1_048_576),
    };
    let tenths = count.saturating_mul(10) / divisor;
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// One limit and how much of it was used.
pub(super) struct HeadRoom {
    pub(super) limit: &'static str,
    used: u64,
    of: u64,
    in_bytes: bool,
}

impl HeadRoom {
    /// Every limit whose use is measured.
    pub(super) fn of(usage: &Usage, limits: &Limits) -> Vec<Self> {
        let row = |limit, used, of, in_bytes| Self { limit, used, of, in_bytes };
        vec![
            row("fuel", usage.fuel, limits.fuel, false),
            row("wall_ms", usage.wall_ms, limits.wall_ms, false),
            row("memory_bytes", usage.memory_peak_bytes, limits.memory_bytes, true),
            row("table_elements", usage.table_elements, limits.table_elements, false),
            row("input_bytes", usage.input_bytes, limits.input_bytes, true),
            row("output_bytes", usage.output_bytes, limits.output_bytes, true),
            row("log_lines", u64::from(usage.log_lines), u64::from(limits.log_lines), false),
            row("log_bytes", usage.log_bytes, limits.log_bytes, true),
            row("host_bytes_per_call", usage.host_bytes, limits.host_bytes_per_call, true),
            row("requests", u64::from(usage.requests), u64::from(limits.requests), false),
        ]
    }

    /// Percent of the limit, rounded up.
    pub(super) fn percent(&self) -> u64 {
        if self.of == 0 { 0 } else { self.used.saturating_mul(100).div_ceil(self.of) }
    }

    pub(super) fn line(&self) -> String {
        let show = |count| if self.in_bytes { bytes(count) } else { thousands(count) };
        format!("{:<20} {:>14} of {:>14} {:>4} %", self.limit, show(self.used), show(self.of), self.percent())
    }

    pub(super) fn json(&self) -> Value {
        json!({ "limit": self.limit, "used": self.used, "of": self.of })
    }
}

/// The larger of each count.
pub(super) fn peak(peak: &mut Usage, usage: &Usage) {
    peak.fuel = peak.fuel.max(usage.fuel);
    peak.wall_ms = peak.wall_ms.max(usage.wall_ms);
    peak.memory_peak_bytes = peak.memory_peak_bytes.max(usage.memory_peak_bytes);
    peak.table_elements = peak.table_elements.max(usage.table_elements);
    peak.input_bytes = peak.input_bytes.max(usage.input_bytes);
    peak.output_bytes = peak.output_bytes.max(usage.output_bytes);
    peak.log_lines = peak.log_lines.max(usage.log_lines);
    peak.log_bytes = peak.log_bytes.max(usage.log_bytes);
    peak.host_calls = peak.host_calls.max(usage.host_calls);
    peak.host_bytes = peak.host_bytes.max(usage.host_bytes);
    peak.requests = peak.requests.max(usage.requests);
    peak.response_bytes = peak.response_bytes.max(usage.response_bytes);
}

fn thousands(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A call for people: outcome, output or error, requests, refusals, log, head-room.
pub(super) fn print_call(report: &CallReport) {
    println!("outcome   {}", report.outcome.as_str());
    if let Some(output) = &report.output {
        println!("output    {}", pretty(output));
    }
    if let Some(error) = &report.error {
        println!("error     {}: {}", error.code, error.message);
        if let Some(limit) = &error.limit {
            println!("limit     {limit}");
        }
        if let Some(retry_after_ms) = error.retry_after_ms {
            println!("retry     after {retry_after_ms} ms");
        }
    }
    for request in &report.egress {
        let end = match (&request.status, &request.error) {
            (_, Some(error)) => error.clone(),
            (Some(status), None) => status.to_string(),
            (None, None) => "no answer".to_owned(),
        };
        println!(
            "request   {} {}{} → {end} ({}, {} ms)",
            request.method,
            request.origin,
            request.path,
            bytes(request.response_bytes),
            request.duration_ms
        );
    }
    for refusal in &report.refusals {
        println!("refused   {} {}: {}", refusal.kind, refusal.target, refusal.reason);
    }
    for line in &report.log {
        println!("log       {:<8} {}", line.level, line.message);
    }
    if report.log_truncated {
        println!("log       (cut: the limit of lines or bytes was reached)");
    }
    println!();
    for row in HeadRoom::of(&report.usage, &report.limits) {
        println!("  {}", row.line());
    }
}

fn pretty(text: &str) -> String {
    let value: Result<Value, _> = serde_json::from_str(text);
    value.ok().and_then(|value| serde_json::to_string_pretty(&value).ok()).unwrap_or_else(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!([bytes(17), bytes(1_536), bytes(33_554_432)], ["17 B", "1.5 KiB", "32.0 MiB"]);
        assert_eq!(
            [thousands(0), thousands(999), thousands(1_000), thousands(12_345_678)],
            ["0", "999", "1,000", "12,345,678"]
        );
    }

    #[test]
    fn a_little_of_a_limit_is_not_nothing() {
        let row = HeadRoom { limit: "fuel", used: 1, of: 1_000_000, in_bytes: false };
        assert_eq!(row.percent(), 1);
        assert_eq!(HeadRoom { limit: "requests", used: 0, of: 0, in_bytes: false }.percent(), 0);
    }
}
