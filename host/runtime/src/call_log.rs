//! What a guest writes: through `wasi:logging`, stdout and stderr. Bounded, made harmless, marked when something was left out.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bulkhead_model::call::LogLine;
use bulkhead_model::limits::Limits;

/// One call's log, shared by the ways that lead into it.
pub(crate) struct CallLog {
    inner: Mutex<Inner>,
}

struct Inner {
    lines: Vec<LogLine>,
    bytes: u64,
    lines_max: usize,
    bytes_max: u64,
    truncated: bool,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// Where bytes without a level come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stdio {
    Stdout,
    Stderr,
}

impl CallLog {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            inner: Mutex::new(Inner {
                lines: Vec::new(),
                bytes: 0,
                lines_max: usize::try_from(limits.log_lines).unwrap_or(usize::MAX),
                bytes_max: limits.log_bytes,
                truncated: false,
                stdout: Vec::new(),
                stderr: Vec::new(),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records one message; its line breaks make several lines.
    pub(crate) fn message(&self, level: &'static str, message: &str) {
        let mut inner = self.lock();
        for line in message.split('\n') {
            inner.line(level, line);
        }
    }

    /// Records bytes of an output stream. A line is complete at its line break, or when it is as long as the log may be.
    pub(crate) fn write(&self, stdio: Stdio, bytes: &[u8]) {
        let mut inner = self.lock();
        let mut rest = bytes;
        while !rest.is_empty() {
            let end = rest.iter().position(|byte| *byte == b'\n');
            let (part, after) = rest.split_at(end.unwrap_or(rest.len()));
            inner.partial(stdio, part);
            if end.is_some() {
                inner.complete(stdio);
                rest = &after[1..];
            } else {
                rest = after;
            }
        }
    }

    /// The lines, whether some are missing, and how many bytes they hold. What has no line break yet is a line too.
    pub(crate) fn finish(&self) -> (Vec<LogLine>, bool, u64) {
        let mut inner = self.lock();
        for stdio in [Stdio::Stdout, Stdio::Stderr] {
            if !inner.buffer(stdio).is_empty() {
                inner.complete(stdio);
            }
        }
        (std::mem::take(&mut inner.lines), inner.truncated, inner.bytes)
    }
}

impl Inner {
    fn buffer(&mut self, stdio: Stdio) -> &mut Vec<u8> {
        match stdio {
            Stdio::Stdout => &mut self.stdout,
            Stdio::Stderr => &mut self.stderr,
        }
    }

    fn partial(&mut self, stdio: Stdio, bytes: &[u8]) {
        let room = usize::try_from(self.bytes_max.saturating_sub(self.bytes)).unwrap_or(usize::MAX);
        let buffer = self.buffer(stdio);
        let taken = bytes.len().min(room.saturating_sub(buffer.len()));
        buffer.extend_from_slice(&bytes[..taken]);
        self.truncated |= taken < bytes.len();
    }

    fn complete(&mut self, stdio: Stdio) {
        let line = std::mem::take(self.buffer(stdio));
        let level = match stdio {
            Stdio::Stdout => "stdout",
            Stdio::Stderr => "stderr",
        };
        self.line(level, &String::from_utf8_lossy(&line));
    }

    fn line(&mut self, level: &'static str, text: &str) {
        let room = self.bytes_max - self.bytes;
        if self.lines.len() >= self.lines_max || room == 0 {
            self.truncated |= !text.is_empty();
            return;
        }
        let mut message = harmless(text);
        if u64::try_from(message.len()).unwrap_or(u64::MAX) > room {
            let mut end = usize::try_from(room).unwrap_or(usize::MAX);
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
            self.truncated = true;
        }
        self.bytes += u64::try_from(message.len()).unwrap_or(u64::MAX);
        self.lines.push(LogLine { level: level.to_owned(), message });
    }
}

/// Text that no terminal obeys: control characters (escape sequences begin with one) and characters that turn the
/// direction of what follows become U+FFFD; tabs stay, a carriage return at the end goes.
pub(crate) fn harmless(text: &str) -> String {
    let text = text.strip_suffix('\r').unwrap_or(text);
    text.chars()
        .map(|c| match c {
            '\t' => '\t',
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_model::limits::ContributionKind;
    use proptest::prelude::*;

    fn log(log_lines: u32, log_bytes: u64) -> CallLog {
        CallLog::new(&Limits { log_lines, log_bytes, ..Limits::default_for(ContributionKind::Action) })
    }

    fn texts(log: &CallLog) -> (Vec<String>, bool) {
        let (lines, truncated, _) = log.finish();
        (lines.into_iter().map(|line| format!("{}: {}", line.level, line.message)).collect(), truncated)
    }

    #[test]
    fn streams_become_lines() {
        let log = log(10, 1_000);
        log.write(Stdio::Stdout, b"one\ntw");
        log.write(Stdio::Stderr, b"panic");
        log.write(Stdio::Stdout, b"o\r\n");
        log.message("info", "three\nfour");
        assert_eq!(
            texts(&log),
            (
                ["stdout: one", "stdout: two", "info: three", "info: four", "stderr: panic"]
                    .map(str::to_owned)
                    .to_vec(),
                false
            )
        );
    }

    #[test]
    fn too_many_lines_are_marked() {
        let log = log(2, 1_000);
        log.message("info", "a\nb\nc");
        assert_eq!(texts(&log), (vec!["info: a".to_owned(), "info: b".to_owned()], true));
    }

    #[test]
    fn terminals_stay_safe() {
        assert_eq!(harmless("\u{1b}[2J\u{9b}31mred\u{202e}\ttab"), "\u{fffd}[2J\u{fffd}31mred\u{fffd}\ttab");
    }

    proptest! {
        /// Whatever is written in whatever pieces, neither bound is passed and nothing is lost without a mark.
        #[test]
        fn bounds_hold(pieces in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..40)), 0..30)) {
            let log = log(8, 100);
            let mut sent = 0;
            for (out, bytes) in &pieces {
                sent += bytes.len();
                log.write(if *out { Stdio::Stdout } else { Stdio::Stderr }, bytes);
            }
            let (lines, truncated, bytes) = log.finish();
            prop_assert!(lines.len() <= 8);
            prop_assert!(bytes <= 100);
            prop_assert_eq!(lines.iter().map(|line| line.message.len() as u64).sum::<u64>(), bytes);
            prop_assert!(truncated || sent <= 100 + 40);
        }
    }
}
