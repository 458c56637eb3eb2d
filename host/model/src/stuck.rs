//! Why a run does not go on: from what stands in the database to a sentence, and what to do about it.

use std::time::Duration;

use serde::Serialize;

use crate::id::{DeadLetterId, RunId};
use crate::run::RunStatus;
use crate::time::Timestamp;

/// A node that is alive looks at the queue several times in this time.
const TAKEN_WITHIN: Duration = Duration::from_secs(10);

/// What is known of a run and of what it needs to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub now: Timestamp,
    pub status: RunStatus,
    /// Until when its step waits, as its row says.
    pub waiting_until: Option<Timestamp>,
    /// Code and message of the error that ended it.
    pub error: Option<(String, String)>,
    /// Its entry on the list of dead letters (its own, or its job's).
    pub dead_letter: Option<DeadLetterId>,
    pub job: Option<JobStanding>,
    pub nodes: Nodes,
    /// The plugin that its step calls, where that is in the way.
    pub call: Option<CallTrouble>,
}

/// Processes that carry out jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nodes {
    pub serving: usize,
    pub draining: usize,
    /// Their heartbeat is over and nobody took their work up yet.
    pub dead: usize,
}

/// Why the step's call cannot be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallTrouble {
    Disabled {
        plugin: String,
    },
    /// Not installed, or more than once and the step does not say which.
    Missing {
        plugin: String,
    },
}

/// The run's job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobStanding {
    pub state: JobPlace,
    /// When it is due; of a ready one, since when it could have been taken.
    pub run_at: Timestamp,
    /// Attempts that ended badly for the host's reasons, this one included.
    pub attempt: i64,
    pub attempts_max: i64,
    /// Why the last attempt ended so.
    pub error: Option<String>,
}

/// Where a job is in the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobPlace {
    Future,
    Ready {
        /// Ready jobs of the organization whose turn is before.
        ahead: i64,
        /// There are more than were counted.
        ahead_more: bool,
        lane: Use,
        organization: Use,
    },
    /// As many of its group are carried as may be.
    Blocked {
        group: String,
        limit: i64,
        by: Vec<RunId>,
        held: i64,
    },
    /// The breaker of its workflow's version is open: so many failed alike, and until then no other one is tried.
    Paused {
        failures: u64,
        until: Option<Timestamp>,
    },
    Leased {
        holder: Holder,
        since: Timestamp,
        /// How long its attempt still has; negative once that is over, `None` where nobody here can tell.
        deadline_in_ms: Option<i64>,
    },
}

/// How much of something is taken. A `most` of 0 is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Use {
    pub held: i64,
    pub most: i64,
}

impl Use {
    fn is_full(self) -> bool {
        self.most > 0 && self.held >= self.most
    }
}

/// Who holds a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub name: String,
    pub state: HolderState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HolderState {
    Serving,
    Draining,
    Dead,
}

/// One thing that keeps a run from going on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// Stable, for programs.
    pub code: &'static str,
    /// In plain words.
    pub message: String,
    /// What to do now; that may be to wait.
    pub next: String,
}

fn reason(code: &'static str, message: impl Into<String>, next: impl Into<String>) -> Reason {
    Reason { code, message: message.into(), next: next.into() }
}

/// Why the run stands where it stands, the most important reason first. There is always one.
#[must_use]
pub fn explain(standing: &Standing) -> Vec<Reason> {
    let mut reasons = Vec::new();
    match standing.status {
        RunStatus::Succeeded => {
            reasons.push(reason("succeeded", "The run has ended well.", "Nothing is to be done."));
        }
        RunStatus::Cancelled => {
            let next = "Nothing is to be done; to run it all the same, retry it from a step.";
            reasons.push(reason("cancelled", "Somebody cancelled the run.", next));
        }
        RunStatus::Failed => reasons.push(failed(standing)),
        RunStatus::Queued | RunStatus::Running | RunStatus::Waiting | RunStatus::Paused => {
            reasons.extend(going(standing));
            reasons.extend(standing.call.as_ref().map(in_the_way));
            reasons.extend(standing.job.as_ref().and_then(troubled));
        }
    }
    reasons
}

fn failed(standing: &Standing) -> Reason {
    let (code, message) = standing.error.clone().unwrap_or_else(|| ("unknown".into(), "no reason was kept".into()));
    match standing.dead_letter {
        Some(letter) => reason(
            "dead-letter",
            format!("The run failed for good ({code}): {message}. It waits on the list of dead letters as {letter}."),
            "Mend what failed, then resume it from the list (all of its fault at once, if there are more), or discard it.",
        ),
        None => reason(
            "failed",
            format!(
                "The run failed ({code}): {message}. Nobody is to decide about it: its definition ended it so, or it was discarded."
            ),
            "To run it again, retry it from a step.",
        ),
    }
}

/// Of a run that has not ended.
fn going(standing: &Standing) -> Vec<Reason> {
    let Some(job) = &standing.job else {
        let message = "Nothing carries the run forward: its job is gone or was given up.";
        let next = match standing.dead_letter {
            Some(letter) => format!("Resume {letter} from the list of dead letters; its message says what went wrong."),
            None => "Cancel the run and retry it from a step; and please report this, it should not happen.".to_owned(),
        };
        return vec![reason("no-job", message, next)];
    };
    let nobody = standing.nodes.serving == 0;
    let mut reasons = Vec::new();
    match &job.state {
        JobPlace::Future if job.run_at > standing.now => {
            let until = standing.waiting_until.unwrap_or(job.run_at);
            let why = if standing.waiting_until.is_some() {
                "its step waits (a delay, or the pause before another attempt)"
            } else {
                "it was put off after a failure of the host's"
            };
            reasons.push(reason(
                "not-due",
                format!("The run is not due before {until}: {why}."),
                "Wait for that moment.",
            ));
        }
        JobPlace::Future => {
            reasons.push(reason("due", "The run is due and about to be put into the queue.", "Wait a second."));
        }
        JobPlace::Blocked { group, limit, by, held } => {
            let by = by.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let by = if by.is_empty() { String::new() } else { format!(" (by {by})") };
            let message = format!(
                "The workflow bounds how many of its runs are carried at once, and {held} of {limit} places of the group {group} are \
                 taken{by}."
            );
            let next = "Wait for one of them to end, cancel one, or raise the workflow's `concurrency`.";
            reasons.push(reason("group-full", message, next));
        }
        JobPlace::Paused { failures, until } => {
            let until = until.map_or_else(String::new, |until| format!("; one is tried again at {until}"));
            let message = format!(
                "{failures} runs of its workflow's version failed alike, so its breaker holds back those that have not begun{until}."
            );
            let next = "Mend what failed and wait for the run that is tried, or close the breaker by hand (the workflow shows it).";
            reasons.push(reason("breaker-open", message, next));
        }
        JobPlace::Leased { holder, since, deadline_in_ms } => {
            return vec![held_by(holder, *since, *deadline_in_ms)];
        }
        JobPlace::Ready { ahead, ahead_more, lane, organization } => {
            let line = match (*ahead, *ahead_more) {
                (0, _) => "it is the next of its organization".to_owned(),
                (ahead, true) => format!("more than {ahead} of its organization are before it"),
                (ahead, false) => format!("{ahead} of its organization are before it"),
            };
            if nobody {
                // Said below.
            } else if organization.is_full() {
                let message = format!(
                    "The organization holds {} of the {} jobs that it may hold at once; {line}.",
                    organization.held, organization.most
                );
                let next = "Wait, or have the operator raise the bound: `bulkhead admin set-share ORG --jobs-max N`.";
                reasons.push(reason("organization-full", message, next));
            } else if lane.is_full() {
                let message = format!("All {} slots of the nodes are taken; {line}.", lane.most);
                let next = "Wait, add a node, or raise `worker.slots_interactive`.";
                reasons.push(reason("lane-full", message, next));
            } else if standing.now.since(job.run_at) > TAKEN_WITHIN && *ahead == 0 {
                let message =
                    format!("The run has been ready since {} and nobody takes it, although there is room.", job.run_at);
                let next =
                    "Look for `claiming failed` in the nodes' logs, and whether `bulkhead doctor` finds anything.";
                reasons.push(reason("not-taken", message, next));
            } else {
                reasons.push(reason("in-line", format!("The run is ready; {line}."), "Wait a moment."));
            }
        }
    }
    if nobody {
        let message = match standing.nodes {
            Nodes { draining: 0, dead: 0, .. } => "No node serves.".to_owned(),
            Nodes { draining, dead, .. } => format!("No node serves: {draining} are ending, {dead} are dead."),
        };
        reasons.insert(0, reason("no-node", message, "Start a node: `bulkhead serve`."));
    }
    reasons
}

fn held_by(holder: &Holder, since: Timestamp, deadline_in_ms: Option<i64>) -> Reason {
    let name = &holder.name;
    match (holder.state, deadline_in_ms) {
        (HolderState::Dead, _) => reason(
            "holder-dead",
            format!("The run is held by {name}, which is dead (last seen with it at {since})."),
            "Wait: another node takes it up within five seconds, if one serves; on SQLite the next start does.",
        ),
        (_, Some(left)) if left < 0 => reason(
            "stuck",
            format!("The run is held by {name} since {since}, and its attempt has passed its deadline."),
            "Wait: the job is freed within a second or two, if a node serves.",
        ),
        (state, left) => {
            let deadline = left.map_or_else(String::new, |ms| format!("; the attempt has {} s left", ms / 1_000));
            let ending = if state == HolderState::Draining { ", which is ending" } else { "" };
            reason(
                "carried",
                format!("The run is being carried forward by {name}{ending}, since {since}{deadline}."),
                "Wait for its step; to end it now, cancel the run.",
            )
        }
    }
}

fn in_the_way(call: &CallTrouble) -> Reason {
    match call {
        CallTrouble::Disabled { plugin } => reason(
            "installation-disabled",
            format!("Its step calls {plugin}, whose installation is disabled: the step will fail."),
            "Enable the installation, or change the workflow.",
        ),
        CallTrouble::Missing { plugin } => reason(
            "installation-missing",
            format!(
                "Its step calls {plugin}, which is not installed (or more than once, and the step does not say which): it will fail."
            ),
            "Install the plugin, or name the installation in the step.",
        ),
    }
}

/// Attempts that ended badly for the host's reasons.
fn troubled(job: &JobStanding) -> Option<Reason> {
    let error = job.error.as_ref()?;
    let message =
        format!("Attempt {} of {} ended badly for the host's reasons: {error}.", job.attempt, job.attempts_max);
    let next = "Look at the nodes' logs; after the last attempt the run fails and waits on the list of dead letters.";
    Some(reason("attempts-failed", message, next))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ambient::Ambient;

    const NOW: Timestamp = Timestamp::from_micros(1_795_248_000_000_000);

    fn standing(status: RunStatus, state: JobPlace) -> Standing {
        Standing {
            now: NOW,
            status,
            waiting_until: None,
            error: None,
            dead_letter: None,
            job: Some(JobStanding { state, run_at: NOW, attempt: 0, attempts_max: 25, error: None }),
            nodes: Nodes { serving: 1, ..Nodes::default() },
            call: None,
        }
    }

    fn ready(ahead: i64, lane: (i64, i64), organization: (i64, i64)) -> JobPlace {
        let of = |(held, most)| Use { held, most };
        JobPlace::Ready { ahead, ahead_more: false, lane: of(lane), organization: of(organization) }
    }

    fn codes(standing: &Standing) -> Vec<&'static str> {
        explain(standing).iter().map(|reason| reason.code).collect()
    }

    #[test]
    fn each_standing_has_its_reason() {
        let queued = |state| standing(RunStatus::Queued, state);
        assert_eq!(codes(&queued(ready(0, (0, 8), (0, 64)))), ["in-line"]);
        assert_eq!(codes(&queued(ready(3, (8, 8), (0, 64)))), ["lane-full"]);
        assert_eq!(codes(&queued(ready(3, (8, 8), (64, 64)))), ["organization-full"]);
        assert_eq!(codes(&queued(ready(0, (8, 0), (0, 64)))), ["in-line"], "slots that nobody told of are not full");
        assert_eq!(codes(&queued(JobPlace::Future)), ["due"]);
        assert_eq!(codes(&queued(JobPlace::Paused { failures: 20, until: Some(NOW) })), ["breaker-open"]);
        let mut old = queued(ready(0, (0, 8), (0, 64)));
        old.now = NOW.plus(Duration::from_mins(1));
        assert_eq!(codes(&old), ["not-taken"]);
        let mut alone = old.clone();
        alone.nodes = Nodes { serving: 0, draining: 1, dead: 2 };
        assert_eq!(codes(&alone), ["no-node"]);
        assert!(explain(&alone)[0].message.contains("1 are ending, 2 are dead"));
        let mut waits = standing(RunStatus::Waiting, JobPlace::Future);
        let until = NOW.plus(Duration::from_mins(1));
        (waits.waiting_until, waits.job.as_mut().unwrap().run_at) = (Some(until), until);
        assert_eq!(codes(&waits), ["not-due"]);
        assert!(explain(&waits)[0].message.contains(&until.to_string()));
        waits.nodes = Nodes::default();
        assert_eq!(codes(&waits), ["no-node", "not-due"]);
        let ambient = Ambient::manual(NOW, 1);
        let by = RunId::new(&ambient);
        let blocked = queued(JobPlace::Blocked { group: "wf_1".into(), limit: 1, by: vec![by], held: 1 });
        assert_eq!(codes(&blocked), ["group-full"]);
        assert!(explain(&blocked)[0].message.contains(&by.to_string()), "it says who is in the way");
    }

    #[test]
    fn a_held_run_says_by_whom() {
        let held = |state, left| {
            let holder = Holder { name: "node one".into(), state };
            standing(RunStatus::Running, JobPlace::Leased { holder, since: NOW, deadline_in_ms: left })
        };
        for (state, left, code) in [
            (HolderState::Serving, Some(9_000), "carried"),
            (HolderState::Draining, Some(9_000), "carried"),
            (HolderState::Serving, None, "carried"),
            (HolderState::Serving, Some(-1), "stuck"),
            (HolderState::Dead, Some(9_000), "holder-dead"),
        ] {
            let standing = held(state, left);
            assert_eq!(codes(&standing), [code]);
            assert!(explain(&standing)[0].message.contains("node one"));
        }
        assert!(explain(&held(HolderState::Serving, Some(9_000)))[0].message.contains("9 s left"));
    }

    #[test]
    fn an_ended_run_says_how_it_ended() {
        let mut failed = standing(RunStatus::Failed, JobPlace::Future);
        failed.job = None;
        failed.error = Some(("permanent".into(), "the channel is archived".into()));
        assert_eq!(codes(&failed), ["failed"]);
        let letter = DeadLetterId::new(&Ambient::manual(NOW, 1));
        failed.dead_letter = Some(letter);
        let found = explain(&failed);
        assert_eq!(found[0].code, "dead-letter");
        assert!(found[0].message.contains("the channel is archived") && found[0].message.contains(&letter.to_string()));
        let mut lost = failed.clone();
        lost.status = RunStatus::Queued;
        assert_eq!(codes(&lost), ["no-job"]);
        assert!(explain(&lost)[0].next.contains(&letter.to_string()));
        lost.dead_letter = None;
        assert!(explain(&lost)[0].next.contains("Cancel"));
        for (status, code) in [(RunStatus::Succeeded, "succeeded"), (RunStatus::Cancelled, "cancelled")] {
            assert_eq!(codes(&Standing { status, ..failed.clone() }), [code]);
        }
    }

    #[test]
    fn what_stands_beside_it_is_told_as_well() {
        let mut troubled = standing(RunStatus::Queued, ready(0, (0, 8), (0, 64)));
        troubled.job.as_mut().unwrap().error = Some("the store failed".into());
        troubled.call = Some(CallTrouble::Disabled { plugin: "acme/echo".into() });
        assert_eq!(codes(&troubled), ["in-line", "installation-disabled", "attempts-failed"]);
        troubled.call = Some(CallTrouble::Missing { plugin: "acme/echo".into() });
        assert!(codes(&troubled).contains(&"installation-missing"));
    }

    fn any_place() -> impl Strategy<Value = Option<JobPlace>> {
        prop_oneof![
            Just(None),
            Just(Some(JobPlace::Future)),
            (0_u64..9, any::<bool>())
                .prop_map(|(failures, told)| Some(JobPlace::Paused { failures, until: told.then_some(NOW) })),
            (0_i64..9, 0_i64..9, 0_i64..9, 0_i64..9).prop_map(|(a, b, c, d)| Some(ready(a, (b, c), (d, 4)))),
            (0_i64..9).prop_map(|held| Some(JobPlace::Blocked { group: "g".into(), limit: 1, by: Vec::new(), held })),
            (0_usize..3, prop::option::of(-9_i64..9)).prop_map(|(state, left)| {
                let state = [HolderState::Serving, HolderState::Draining, HolderState::Dead][state];
                let holder = Holder { name: "n".into(), state };
                Some(JobPlace::Leased { holder, since: NOW, deadline_in_ms: left })
            }),
        ]
    }

    proptest! {
        #[test]
        fn there_is_always_a_reason_and_something_to_do(
            status in prop::sample::select(vec![
                RunStatus::Queued, RunStatus::Running, RunStatus::Waiting, RunStatus::Paused, RunStatus::Succeeded, RunStatus::Failed,
                RunStatus::Cancelled,
            ]),
            place in any_place(),
            serving in 0_usize..3,
            late_s in 0_u64..100,
        ) {
            let mut standing = standing(status, JobPlace::Future);
            standing.job = place.map(|state| JobStanding { state, run_at: NOW, attempt: 1, attempts_max: 25, error: None });
            standing.nodes.serving = serving;
            standing.now = NOW.plus(Duration::from_secs(late_s));
            let reasons = explain(&standing);
            prop_assert!(!reasons.is_empty());
            for reason in &reasons {
                prop_assert!(!reason.message.is_empty() && !reason.next.is_empty());
                if status.is_final() {
                    prop_assert!(reason.code != "no-node", "an ended run needs no node");
                }
            }
        }
    }
}
