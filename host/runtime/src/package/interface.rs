//! Which names a component may import and export, and what each of them needs.

use bulkhead_model::limits::ContributionKind;

/// What an import needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Import {
    /// Linked for every guest: the standard libraries import it. Logging too.
    Baseline,
    /// Linked for every guest that is not pure.
    Effectful,
    /// A permission of kind `http`.
    Http,
    /// A permission of kind `secret`.
    Secrets,
    Unknown,
}

/// What an export is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Export {
    Contribution(ContributionKind),
    /// Types that a contribution's interface uses.
    Ignored,
    Unknown,
}

/// The interfaces of WASI 0.2 that are linked for every guest.
const BASELINE: [&str; 27] = [
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/stderr",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:cli/terminal-stderr",
    "wasi:clocks/wall-clock",
    "wasi:clocks/monotonic-clock",
    "wasi:random/random",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:filesystem/types",
    "wasi:filesystem/preopens",
    "wasi:sockets/network",
    "wasi:sockets/instance-network",
    "wasi:sockets/ip-name-lookup",
    "wasi:sockets/tcp",
    "wasi:sockets/tcp-create-socket",
    "wasi:sockets/udp",
    "wasi:sockets/udp-create-socket",
];

pub(super) fn import(name: &str) -> Import {
    let Some((interface, version)) = name.split_once('@') else { return Import::Unknown };
    match interface {
        // A prerelease matches exactly.
        "wasi:logging/logging" if version == "0.1.0-draft" => Import::Baseline,
        "wasi:config/store" if version == "0.2.0-rc.1" => Import::Effectful,
        "bulkhead:plugin/types" if is_contract(version) => Import::Baseline,
        "bulkhead:plugin/secrets" if is_contract(version) => Import::Secrets,
        "wasi:http/types" | "wasi:http/outgoing-handler" if is_wasi(version) => Import::Http,
        _ if BASELINE.contains(&interface) && is_wasi(version) => Import::Baseline,
        _ => Import::Unknown,
    }
}

pub(super) fn export(name: &str) -> Export {
    match name.split_once('@') {
        Some(("bulkhead:plugin/action", version)) if is_contract(version) => {
            Export::Contribution(ContributionKind::Action)
        }
        Some(("bulkhead:plugin/channel", version)) if is_contract(version) => {
            Export::Contribution(ContributionKind::Channel)
        }
        Some(("bulkhead:plugin/factor", version)) if is_contract(version) => {
            Export::Contribution(ContributionKind::Factor)
        }
        Some(("bulkhead:plugin/types", version)) if is_contract(version) => Export::Ignored,
        _ => Export::Unknown,
    }
}

fn is_contract(version: &str) -> bool {
    is_release_of(version, "0.1.")
}

fn is_wasi(version: &str) -> bool {
    is_release_of(version, "0.2.")
}

/// `0.2.` and a number: a release of that line, no prerelease.
fn is_release_of(version: &str, line: &str) -> bool {
    version.strip_prefix(line).is_some_and(|patch| !patch.is_empty() && patch.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_whole_and_by_version() {
        for (name, expected) in [
            ("wasi:io/poll@0.2.0", Import::Baseline),
            ("wasi:io/poll@0.2.12", Import::Baseline),
            ("wasi:io/poll@0.3.0", Import::Unknown),
            ("wasi:io/poll@0.2.0-rc", Import::Unknown),
            ("wasi:io/poll", Import::Unknown),
            ("wasi:io/pollute@0.2.0", Import::Unknown),
            ("wasi:sockets/udp-create-socket@0.2.3", Import::Baseline),
            ("wasi:http/outgoing-handler@0.2.4", Import::Http),
            ("wasi:http/incoming-handler@0.2.4", Import::Unknown),
            ("wasi:logging/logging@0.1.0-draft", Import::Baseline),
            ("wasi:logging/logging@0.1.0", Import::Unknown),
            ("wasi:config/store@0.2.0-rc.1", Import::Effectful),
            ("bulkhead:plugin/secrets@0.1.0", Import::Secrets),
            ("bulkhead:plugin/secrets@0.2.0", Import::Unknown),
            ("env", Import::Unknown),
        ] {
            assert_eq!(import(name), expected, "{name}");
        }
        assert_eq!(export("bulkhead:plugin/factor@0.1.0"), Export::Contribution(ContributionKind::Factor));
        assert_eq!(export("bulkhead:plugin/factor@0.1.0-rc"), Export::Unknown);
        assert_eq!(export("wasi:cli/run@0.2.0"), Export::Unknown);
    }
}
