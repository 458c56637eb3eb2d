//! What one plugin call may use. Every limit has a value: there is no "unlimited", and absence does not type-check.
//!
//! Defaults and ceilings are the table "Limits" of the plugin specification.

use serde::{Deserialize, Serialize};

/// Bytes in a KiB and a MiB, for readable constants.
pub const KIB: u64 = 1024;
pub const MIB: u64 = 1024 * KIB;

/// Which export a contribution uses. Actions and channels are *effectful*, factors are *pure*; never both in a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ContributionKind {
    Action,
    Channel,
    Factor,
}

impl ContributionKind {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Action => "action",
            Self::Channel => "channel",
            Self::Factor => "factor",
        }
    }

    #[must_use]
    pub fn is_pure(self) -> bool {
        matches!(self, Self::Factor)
    }
}

/// The limits in force for one call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// wasmtime fuel: about one unit per instruction.
    pub fuel: u64,
    /// Wall time of the whole call, host calls included.
    pub wall_ms: u64,
    /// Bytes summed over all memories of the instance.
    pub memory_bytes: u64,
    /// Elements summed over all tables.
    pub table_elements: u64,
    pub core_instances: u32,
    pub memories: u32,
    pub tables: u32,
    /// Resource handles alive at once, the host's and the guest's.
    pub handles: u32,
    /// Host buffer bytes that one host call may copy.
    pub host_bytes_per_host_call: u64,
    /// Host buffer bytes that all host calls together may copy.
    pub host_bytes_per_call: u64,
    pub input_bytes: u64,
    pub output_bytes: u64,
    pub log_lines: u32,
    pub log_bytes: u64,
    /// Outbound requests.
    pub requests: u32,
    /// Bytes of one response body.
    pub response_bytes: u64,
    /// Nesting of a result's JSON.
    pub json_depth: u32,
    /// Bytes of one string in a result.
    pub json_string_bytes: u64,
    /// Elements of one list or object in a result.
    pub json_list_len: u64,
}

impl Limits {
    /// What a call gets when the manifest asks for nothing else.
    #[must_use]
    pub fn default_for(kind: ContributionKind) -> Self {
        let effectful = Self {
            fuel: 500_000_000,
            wall_ms: 10_000,
            memory_bytes: 64 * MIB,
            table_elements: 20_000,
            core_instances: 32,
            memories: 8,
            tables: 16,
            handles: 1_000,
            host_bytes_per_host_call: 4 * MIB,
            host_bytes_per_call: 32 * MIB,
            input_bytes: MIB,
            output_bytes: 256 * KIB,
            log_lines: 1_000,
            log_bytes: 64 * KIB,
            requests: 20,
            response_bytes: 4 * MIB,
            json_depth: 64,
            json_string_bytes: 64 * KIB,
            json_list_len: 10_000,
        };
        match kind {
            ContributionKind::Action | ContributionKind::Channel => effectful,
            ContributionKind::Factor => Self {
                fuel: 200_000_000,
                wall_ms: 1_000,
                memory_bytes: 32 * MIB,
                handles: 100,
                host_bytes_per_host_call: MIB,
                host_bytes_per_call: 8 * MIB,
                input_bytes: 8 * MIB,
                output_bytes: MIB,
                log_lines: 100,
                log_bytes: 8 * KIB,
                requests: 0,
                response_bytes: 0,
                ..effectful
            },
        }
    }

    /// The most that the platform gives.
    #[must_use]
    pub fn ceiling_for(kind: ContributionKind) -> Self {
        let default = Self::default_for(kind);
        match kind {
            ContributionKind::Action | ContributionKind::Channel => Self {
                fuel: 5_000_000_000,
                wall_ms: 60_000,
                memory_bytes: 256 * MIB,
                table_elements: 100_000,
                ..default
            },
            ContributionKind::Factor => Self {
                fuel: 2_000_000_000,
                wall_ms: 10_000,
                memory_bytes: 128 * MIB,
                table_elements: 100_000,
                ..default
            },
        }
    }

    /// The manifest's wishes over the defaults, cut at the ceiling.
    #[must_use]
    pub fn resolve(kind: ContributionKind, asked: &LimitsAsked) -> Self {
        let mut limits = Self::default_for(kind);
        let ceiling = Self::ceiling_for(kind);
        limits.fuel = asked.fuel.unwrap_or(limits.fuel).min(ceiling.fuel);
        limits.wall_ms = asked.wall_ms.unwrap_or(limits.wall_ms).min(ceiling.wall_ms);
        limits.memory_bytes = asked.memory_bytes.unwrap_or(limits.memory_bytes).min(ceiling.memory_bytes);
        limits.table_elements = asked.table_elements.unwrap_or(limits.table_elements).min(ceiling.table_elements);
        limits
    }
}

/// `[limits]` of a manifest: what the author asks for; what is left out is the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitsAsked {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fuel: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wall_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table_elements: Option<u64>,
}

/// What a package may hold at most. Checked before anything is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackageLimits {
    pub package_bytes: u64,
    /// One function's body.
    pub function_bytes: u64,
    pub functions: u32,
    pub core_instances: u32,
    pub memories: u32,
    pub tables: u32,
    pub component_instances: u32,
    pub manifest_bytes: u64,
    /// The compiler process: wall time and address space.
    pub compile_wall_ms: u64,
    pub compile_memory_bytes: u64,
}

impl PackageLimits {
    #[must_use]
    pub const fn platform() -> Self {
        Self {
            package_bytes: 32 * MIB,
            function_bytes: MIB,
            functions: 100_000,
            core_instances: 32,
            memories: 8,
            tables: 16,
            component_instances: 32,
            manifest_bytes: 256 * KIB,
            compile_wall_ms: 60_000,
            compile_memory_bytes: 3 * 1024 * MIB,
        }
    }

    /// A factor's package may be smaller only.
    #[must_use]
    pub const fn factor() -> Self {
        Self { package_bytes: 8 * MIB, ..Self::platform() }
    }
}

/// What a call used, in the same units as [`Limits`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    pub fuel: u64,
    pub wall_ms: u64,
    pub memory_peak_bytes: u64,
    pub table_elements: u64,
    pub input_bytes: u64,
    pub output_bytes: u64,
    pub log_lines: u32,
    pub log_bytes: u64,
    pub host_calls: u32,
    pub host_bytes: u64,
    pub requests: u32,
    pub response_bytes: u64,
}
