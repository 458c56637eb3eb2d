//! `soak`: the suites of faults for as long as it takes: kill loops, a flood of webhooks, and long sequences on both databases.

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::{fuzz, plugins, setup, tools};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// How often a server is killed, on each database.
    #[arg(long, default_value_t = 50)]
    kills: u32,
    /// Which databases the killed servers use.
    #[arg(long, value_enum, default_value_t = Place::Both)]
    database: Place,
    /// What random choices follow from; the suites print it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Operations of the sequence that runs on both databases and must end alike; 0 leaves it out.
    #[arg(long, default_value_t = 100_000)]
    operations: u32,
    /// Webhooks of a flood, as fast as the server answers; 0 leaves it out.
    #[arg(long, default_value_t = 100_000)]
    storm: u32,
    /// Rows of each large table under which the kept plans must hold; 0 leaves it out.
    #[arg(long, default_value_t = 1_000_000)]
    plan_rows: u32,
    /// Seconds of an independent client's requests (`cargo xtask fuzz`); 0 leaves it out.
    #[arg(long, default_value_t = 900)]
    fuzz: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Place {
    /// One node.
    Sqlite,
    /// Three nodes.
    Postgres,
    Both,
}

impl Place {
    fn storms(self) -> &'static [&'static str] {
        match self {
            Self::Sqlite => &["storm::one_node_on_sqlite"],
            Self::Postgres => &["storm::two_nodes_on_postgres"],
            Self::Both => &["storm::one_node_on_sqlite", "storm::two_nodes_on_postgres"],
        }
    }

    /// The tests' names.
    fn filters(self) -> &'static [&'static str] {
        match self {
            Self::Sqlite => &["kill::one_node_on_sqlite"],
            Self::Postgres => &["kill::three_nodes_on_postgres"],
            Self::Both => &["kill::one_node_on_sqlite", "kill::three_nodes_on_postgres"],
        }
    }
}

pub(crate) fn chore(arguments: &Arguments) -> Result<()> {
    setup::require()?;
    tools::run(tools::cargo().args(["build", "--workspace", "--lib", "--bins", "--tests", "--examples"]))?;
    plugins::build_all(&tools::built("bulkhead", false)?)?;
    // One after another, and not under a runner that ends what takes long.
    let suite = |suite: &str, filters: &[&str]| {
        let mut command = tools::cargo();
        command.args(["test", "--workspace", "--test", suite, "--", "--nocapture", "--test-threads", "1"]);
        command.args(filters).env("BULKHEAD_TEST_SEED", arguments.seed.to_string());
        command.env("BULKHEAD_TEST_KILLS", arguments.kills.to_string());
        command.env("BULKHEAD_TEST_STORM", arguments.storm.to_string());
        command.env("BULKHEAD_TEST_OPERATIONS", arguments.operations.to_string());
        command.env("BULKHEAD_TEST_PLAN_ROWS", arguments.plan_rows.to_string());
        tools::run(&mut command)
    };
    if arguments.kills > 0 {
        suite("faults", arguments.database.filters())?;
    }
    if arguments.storm > 0 {
        suite("faults", arguments.database.storms())?;
    }
    if arguments.operations > 0 && arguments.database == Place::Both {
        suite("store", &["differential::"])?;
    }
    if arguments.plan_rows > 0 && arguments.database == Place::Both {
        suite("store", &["plans::"])?;
    }
    if arguments.fuzz > 0 {
        fuzz::chore(&fuzz::Arguments {
            seconds: arguments.fuzz,
            seed: arguments.seed,
            phases: fuzz::ALL_PHASES.to_owned(),
        })?;
    }
    Ok(())
}
