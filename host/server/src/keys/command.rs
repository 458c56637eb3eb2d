//! A key service behind a program of the operator's: one question a call as JSON on its standard input, one answer on its standard output.
//!
//! | question | answer |
//! | --- | --- |
//! | `{"version":1,"operation":"wrap","purpose":"bulkhead root keys v1","plaintext":"…"}` | `{"wrapped":"…"}` |
//! | `{"version":1,"operation":"unwrap","purpose":"bulkhead root keys v1","wrapped":"…"}` | `{"plaintext":"…"}` |
//!
//! `plaintext` is base64; `wrapped` is the service's own text, without spaces. `purpose` is for the service's associated data. The program
//! ends with 0, in time; what it says on its standard error is shown when it does not.

use std::io::{Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::Custodian;

const VERSION: u32 = 1;
const PURPOSE: &str = "bulkhead root keys v1";
/// An answer is a file of root keys in base64 at most, and little more.
const ANSWER_BYTES_MAX: usize = 128 * 1024;
/// What is looked at of what a program says about its failure, and what is shown of it.
const SAID_BYTES_MAX: usize = 4 * 1024;
const SAID_LEN_MAX: usize = 300;
/// So many letters and digits in a row may be a key: they are not shown. Ids of keys (UUIDs, ARNs) have signs in between.
const WORD_LEN_MAX: usize = 31;
/// What a program said is complete when it has ended, but for what it left running.
const SAID_WITHIN: Duration = Duration::from_secs(1);
/// Between two looks whether a program that has answered has ended.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// The program and how long it may take.
pub(crate) struct CommandCustodian {
    /// The program, by its path, and its arguments.
    command: Vec<String>,
    timeout: Duration,
}

#[derive(Serialize)]
struct Question<'a> {
    version: u32,
    operation: &'a str,
    purpose: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    plaintext: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wrapped: Option<&'a str>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wrapped {
    wrapped: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Opened {
    plaintext: String,
}

/// What a program that ended well said.
struct Answer {
    bytes: Zeroizing<Vec<u8>>,
    /// On standard error, fit to be shown.
    said: String,
}

impl Answer {
    /// An answer of another form. The parser's own words are not among it: they may repeat what it read.
    fn refuse(&self, why: &str) -> anyhow::Error {
        let said = if self.said.is_empty() { String::new() } else { format!("; it said: {}", self.said) };
        anyhow::anyhow!("keys.command {why}{said}")
    }
}

/// A program that is asked. Nobody waits for one that was not heard to its end: it ends, with what it started.
struct Running {
    child: Child,
    has_ended: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Before it is waited for, its id cannot be somebody else's.
        if !self.has_ended {
            // Where it has just ended there is nothing to end.
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            drop(self.child.wait());
        }
    }
}

/// Reads a stream to its end or to one byte more than `most`, on a thread of its own: a program that neither writes nor ends must not be
/// waited for here.
fn reader(mut stream: impl Read + Send + 'static, most: usize) -> Receiver<Zeroizing<Vec<u8>>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        // All of it at once: a buffer that grows leaves copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(most + 64));
        // What was read before a failure is judged by what it is.
        drop(stream.by_ref().take(most as u64 + 1).read_to_end(&mut bytes));
        // Whoever asked may have given up.
        drop(sender.send(bytes));
        // Whoever says more is heard no further, and does not end for it.
        drop(std::io::copy(&mut stream, &mut std::io::sink()));
    });
    receiver
}

fn end_word(line: &mut String, word: &mut String) {
    line.push_str(if word.chars().count() > WORD_LEN_MAX { "…" } else { word.as_str() });
    word.clear();
}

/// What a program said, in one line and without what may be a key.
fn shown(said: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(said).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let (mut line, mut word) = (String::new(), String::new());
    for letter in text.trim().chars() {
        if letter.is_alphanumeric() || matches!(letter, '+' | '/' | '=' | '_') {
            word.push(letter);
        } else {
            end_word(&mut line, &mut word);
            line.push(letter);
        }
    }
    end_word(&mut line, &mut word);
    line.chars().take(SAID_LEN_MAX).collect()
}

impl CommandCustodian {
    pub(crate) fn new(command: Vec<String>, timeout: Duration) -> Self {
        Self { command, timeout }
    }

    fn start(&self) -> Result<Running> {
        let (program, arguments) = self.command.split_first().context("keys.command names no program")?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // What it starts itself is ended with it.
        command.process_group(0);
        // The service's own credentials may stand in the environment; what this server is configured by is no business of the program.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("BULKHEAD_") {
                command.env_remove(name);
            }
        }
        let child = command.spawn().with_context(|| format!("keys.command: cannot start {program}"))?;
        Ok(Running { child, has_ended: false })
    }

    fn ask(&self, operation: &str, plaintext: Option<&str>, wrapped: Option<&str>) -> Result<Answer> {
        let question = Question { version: VERSION, operation, purpose: PURPOSE, plaintext, wrapped };
        let length = 256 + plaintext.map_or(0, str::len) + wrapped.map_or(0, str::len);
        let mut line = Zeroizing::new(Vec::with_capacity(length));
        serde_json::to_writer(&mut *line, &question).context("a question is text")?;
        line.push(b'\n');

        let began = Instant::now();
        let late = || {
            format!(
                "keys.command did not {operation} the root keys within {} s (keys.command_timeout_s)",
                self.timeout.as_secs_f64()
            )
        };
        let mut running = self.start()?;
        let mut stdin = running.child.stdin.take().context("its standard input is a pipe")?;
        let answer = reader(running.child.stdout.take().context("its standard output is a pipe")?, ANSWER_BYTES_MAX);
        let said = reader(running.child.stderr.take().context("its standard error is a pipe")?, SAID_BYTES_MAX);
        std::thread::spawn(move || {
            // A program that does not read its question is judged by its answer.
            drop(stdin.write_all(&line));
        });
        let left = || self.timeout.saturating_sub(began.elapsed());
        let bytes = answer.recv_timeout(left()).map_err(|_| anyhow::anyhow!(late()))?;
        ensure!(bytes.len() <= ANSWER_BYTES_MAX, "keys.command answered with more than {ANSWER_BYTES_MAX} bytes");
        let status = loop {
            if let Some(status) = running.child.try_wait()? {
                running.has_ended = true;
                break status;
            }
            if left().is_zero() {
                bail!(late());
            }
            std::thread::sleep(LOOK_EVERY);
        };
        // Something that it left running may still hold its standard error.
        let said = shown(&said.recv_timeout(SAID_WITHIN).unwrap_or_default());
        if !status.success() {
            bail!("keys.command could not {operation} the root keys ({status}): {said}");
        }
        Ok(Answer { bytes, said })
    }
}

impl Custodian for CommandCustodian {
    fn wrap(&self, text: &str) -> Result<String> {
        let plaintext = Zeroizing::new(STANDARD.encode(text));
        let answer = self.ask("wrap", Some(&plaintext), None)?;
        let Ok(Wrapped { wrapped }) = serde_json::from_slice(&answer.bytes) else {
            return Err(answer.refuse("was asked to wrap and did not answer {\"wrapped\": \"…\"}"));
        };
        ensure!(
            !wrapped.contains(plaintext.as_str()),
            "keys.command hands back what it was to wrap: that would be no protection"
        );
        Ok(wrapped)
    }

    fn unwrap(&self, wrapped: &str) -> Result<Zeroizing<String>> {
        let answer = self.ask("unwrap", None, Some(wrapped))?;
        let Ok(Opened { plaintext }) = serde_json::from_slice(&answer.bytes) else {
            return Err(answer.refuse("was asked to unwrap and did not answer {\"plaintext\": \"…\"}"));
        };
        let plaintext = Zeroizing::new(plaintext);
        let Ok(bytes) = STANDARD.decode(plaintext.as_bytes()).map(Zeroizing::new) else {
            return Err(answer.refuse("was asked to unwrap, and its \"plaintext\" is not base64"));
        };
        let Ok(text) = std::str::from_utf8(&bytes) else { bail!("what keys.command opened is no text of root keys") };
        Ok(Zeroizing::new(text.to_owned()))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use super::*;

    /// A key service of some lines: it turns letters by thirteen places, which is no protection and easily seen.
    const SERVICE: &str = r#"
read -r ask
field() { printf '%s' "$ask" | sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p"; }
turned() { printf '%s' "$1" | tr 'A-Za-z' 'N-ZA-Mn-za-m'; }
case "$ask" in
*'"operation":"wrap","purpose":"bulkhead root keys v1"'*)
  printf '{"wrapped":"test:%s"}\n' "$(turned "$(field plaintext)")" ;;
*'"operation":"unwrap","purpose":"bulkhead root keys v1"'*)
  wrapped=$(field wrapped)
  case "$wrapped" in test:*) ;; *) echo "no ciphertext of this service" >&2; exit 3 ;; esac
  printf '{"plaintext":"%s"}\n' "$(turned "${wrapped#test:}")" ;;
*) exit 4 ;;
esac
"#;

    /// The command of a program in the shell's language. A shell that reads it, so that nothing is executed that was just written.
    pub(in crate::keys) fn script(dir: &Path, name: &str, text: &str) -> Vec<String> {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        vec!["/bin/sh".to_owned(), path.to_str().unwrap().to_owned()]
    }

    pub(in crate::keys) fn service(dir: &Path) -> Vec<String> {
        script(dir, "service.sh", SERVICE)
    }

    fn custodian(text: &str) -> (tempfile::TempDir, CommandCustodian) {
        let dir = tempfile::tempdir().unwrap();
        let command = script(dir.path(), "program.sh", text);
        (dir, CommandCustodian::new(command, Duration::from_mins(1)))
    }

    fn refused(text: &str) -> String {
        let (_dir, custodian) = custodian(text);
        format!("{:#}", custodian.unwrap("test:x").unwrap_err())
    }

    #[test]
    fn what_a_service_wrapped_it_opens() {
        let (_dir, custodian) = custodian(SERVICE);
        let text = format!("{}\nnext {}\n", "0123456789abcdef".repeat(4), "fedcba9876543210".repeat(4));
        let wrapped = custodian.wrap(&text).unwrap();
        assert!(wrapped.starts_with("test:") && !wrapped.contains("0123456789abcdef"), "{wrapped}");
        assert_eq!(*custodian.unwrap(&wrapped).unwrap(), text);
        // More than a pipe holds at once.
        let long = "0123456789abcdef".repeat(4_000);
        assert_eq!(*custodian.unwrap(&custodian.wrap(&long).unwrap()).unwrap(), long);
    }

    #[test]
    fn a_program_that_fails_is_heard_and_repeats_no_key() {
        let key = "0123456789abcdef".repeat(4);
        let why = refused(&format!("echo 'denied: arn:aws:kms:eu:1:key/5f1c, saw {key}' >&2; exit 3"));
        assert!(why.contains("exit status: 3") && why.contains("denied: arn:aws:kms:eu:1:key/5f1c"), "{why}");
        assert!(why.contains('…') && !why.contains("0123456789abcdef"), "{why}");
        assert!(refused("echo '{\"plaintext\":\"\"}'; exit 1").contains("exit status: 1"), "an answer is not enough");
        let missing = CommandCustodian::new(vec!["/nowhere/at-all".to_owned()], Duration::from_mins(1));
        assert!(format!("{:#}", missing.unwrap("x").unwrap_err()).contains("cannot start /nowhere/at-all"));
        assert!(CommandCustodian::new(Vec::new(), Duration::from_mins(1)).unwrap("x").is_err());
    }

    #[test]
    fn an_answer_of_another_form_is_none() {
        let key = "0123456789abcdef".repeat(4);
        for answer in [
            String::new(),
            "opened".to_owned(),
            key.clone(),
            format!("{{\"plaintext\":[\"{key}\"]}}"),
            format!("{{\"wrapped\":\"{key}\"}}"),
            format!("{{\"plaintext\":\"\",\"{key}\":1}}"),
            "{\"plaintext\":\"\"} {\"plaintext\":\"\"}".to_owned(),
        ] {
            let why = refused(&format!("cat >/dev/null; printf '%s' '{answer}'"));
            assert!(why.contains("did not answer"), "{why}");
            assert!(!why.contains("0123456789abcdef"), "{why}");
        }
        // The last program of a pipe ends well, whatever the first one said.
        assert!(
            refused("(echo 'permission denied' >&2; exit 1) | cat")
                .contains("did not answer {\"plaintext\": \"…\"}; it said: permission denied")
        );
        assert!(refused("printf '{\"plaintext\":\"?\"}'").contains("base64"));
        assert!(refused("printf '{\"plaintext\":\"/w==\"}'").contains("no text"), "bytes that are no text");
        assert!(refused("head -c 200000 /dev/zero | tr '\\0' a").contains("more than"));
    }

    #[test]
    fn a_program_that_says_much_beside_its_answer_is_not_ended_for_it() {
        let chatty = "seq 1 40000 >&2; printf '{\"plaintext\":\"aGk=\"}'";
        let (_dir, custodian) = custodian(chatty);
        assert_eq!(*custodian.unwrap("test:x").unwrap(), "hi");
    }

    #[test]
    fn a_program_that_does_not_end_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        // One keeps its answer to itself, one goes on after it; each leaves another program behind.
        for text in [
            "sleep 600 & sleep 600",
            "sleep 600 >/dev/null 2>&1 & echo '{\"plaintext\":\"\"}'; exec >&- 2>&-; sleep 600",
        ] {
            let command = script(dir.path(), "program.sh", text);
            let custodian = CommandCustodian::new(command, Duration::from_millis(300));
            let why = custodian.unwrap("test:x").unwrap_err().to_string();
            assert!(why.contains("within 0.3 s"), "{why}");
        }
    }

    #[test]
    fn a_program_that_wraps_nothing_is_refused() {
        let same = SERVICE.replace("N-ZA-Mn-za-m", "A-Za-z");
        let (_dir, custodian) = custodian(&same);
        assert!(custodian.wrap("0123456789abcdef").unwrap_err().to_string().contains("no protection"));
    }
}
