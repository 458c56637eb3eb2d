//! Statements through `psql`: whoever has a server has it, and no driver need be linked into the chores.

use std::path::Path;
use std::process::{Command, Stdio};

/// Runs each statement in its own transaction; answers what they print, unaligned, without headers.
///
/// # Errors
/// What `psql` wrote to standard error, trimmed.
pub(super) fn run(psql: &Path, url: &str, statements: &[&str]) -> Result<String, String> {
    let (address, password) = split_password(url);
    let mut command = Command::new(psql);
    command.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--no-password"]);
    command.args(["--set", "ON_ERROR_STOP=1", "--dbname", &address]);
    for statement in statements {
        command.args(["--command", statement]);
    }
    if let Some(password) = password {
        // Not in the arguments, which every user of the machine can read.
        command.env("PGPASSWORD", password);
    }
    // Messages are matched on below and in `server`: in English, whoever runs the tests.
    command.env("LC_ALL", "C").env("PGCONNECT_TIMEOUT", "10").stdin(Stdio::null());
    let output = command.output().map_err(|error| format!("{}: {error}", psql.display()))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

/// The address without its password, and the password decoded.
fn split_password(url: &str) -> (String, Option<String>) {
    let Some((scheme, rest)) = url.split_once("://") else { return (url.to_owned(), None) };
    let authority_end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(authority_end);
    let Some((user_info, host)) = authority.rsplit_once('@') else { return (url.to_owned(), None) };
    let Some((user, password)) = user_info.split_once(':') else { return (url.to_owned(), None) };
    (format!("{scheme}://{user}@{host}{tail}"), Some(percent_decoded(password)))
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = after
            .get(..2)
            .filter(|_| first == b'%')
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        if let Some(byte) = escaped {
            bytes.push(byte);
            rest = &after[2..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The same server, another database: what follows a `?` stays.
pub(super) fn with_database(url: &str, database: &str) -> String {
    let (head, query) = url.split_once('?').map_or((url, None), |(head, query)| (head, Some(query)));
    let authority_start = head.find("://").map_or(0, |at| at + 3);
    let authority_end = head[authority_start..].find('/').map_or(head.len(), |at| authority_start + at);
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    format!("{}/{database}{query}", &head[..authority_end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_leaves_the_address() {
        let (address, password) = split_password("postgres://own:p%40ss%25@127.0.0.1:5433/main?sslmode=disable");
        assert_eq!(address, "postgres://own@127.0.0.1:5433/main?sslmode=disable");
        assert_eq!(password.as_deref(), Some("p@ss%"));
    }

    #[test]
    fn an_address_without_password_is_left_alone() {
        for url in ["postgres://own@host/main", "postgres:///main?host=/run/postgresql", "host=/run dbname=main"] {
            assert_eq!(split_password(url), (url.to_owned(), None));
        }
    }

    #[test]
    fn a_stray_percent_sign_is_taken_as_written() {
        assert_eq!(percent_decoded("100%"), "100%");
        assert_eq!(percent_decoded("%zz%41"), "%zzA");
    }

    #[test]
    fn the_database_is_replaced_or_added() {
        assert_eq!(with_database("postgres://a:b@h:1/old?x=y", "new"), "postgres://a:b@h:1/new?x=y");
        assert_eq!(with_database("postgres://a:b@h:1", "new"), "postgres://a:b@h:1/new");
        assert_eq!(with_database("postgres:///old?host=/run/pg", "new"), "postgres:///new?host=/run/pg");
    }
}
