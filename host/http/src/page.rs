//! Lists: pages with sealed cursors. A cursor is good for the list, the organization and the filters that it came from, and
//! for nothing else; a client that builds its own is refused.

use axum::extract::{FromRequestParts, MatchedPath, Query, RawPathParams};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bulkhead_app::data::{PAGE_LIMIT_DEFAULT, PAGE_LIMIT_MAX, Page, PageRequest};
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::Uri;
use http::request::Parts;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::Sha256;
use uuid::Uuid;

use crate::access::Bound;
use crate::problem::{Kind, Problem};
use crate::{HttpState, json};

/// Bytes of the seal: half of HMAC-SHA-256, which NIST SP 800-107 §5.3.3 calls enough.
const SEAL_BYTES: usize = 16;

/// One page of a list.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = List)]
pub(crate) struct ListOf<T> {
    pub(crate) items: Vec<T>,
    /// Give it as `cursor` for the page that follows; null on the last one.
    pub(crate) next_cursor: Option<String>,
}

/// What every list takes beside its own filters `F`.
pub(crate) struct Paging<F> {
    pub(crate) filter: F,
    pub(crate) limit: u32,
    after: Option<Vec<u8>>,
    seal: Seal,
}

/// A list without filters of its own.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NoFilter {}

/// What every list takes, for the OpenAPI document.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "only the document reads it")]
pub(crate) struct PageParams {
    /// Rows in a page, 1 to 200; 50 when left out.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
    /// `next_cursor` of the page before; with the same filters.
    cursor: Option<String>,
}

/// Seals positions into cursors of one list.
struct Seal {
    mac: Hmac<Sha256>,
}

impl Seal {
    /// `parts` say which list it is; each is preceded by its length, so that no two lists share a text.
    fn new(key: &[u8; 32], parts: &[&[u8]]) -> Self {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of every length");
        for part in parts {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        Self { mac }
    }

    fn close(&self, position: &[u8]) -> String {
        let mut mac = self.mac.clone();
        mac.update(position);
        let seal = mac.finalize().into_bytes();
        URL_SAFE_NO_PAD.encode([position, &seal[..SEAL_BYTES]].concat())
    }

    fn open(&self, cursor: &str) -> Option<Vec<u8>> {
        let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
        let (position, seal) = bytes.split_at_checked(bytes.len().checked_sub(SEAL_BYTES)?)?;
        let mut mac = self.mac.clone();
        mac.update(position);
        mac.verify_truncated_left(seal).ok()?;
        Some(position.to_vec())
    }
}

#[derive(Debug, thiserror::Error)]
#[error("a list is read before its organization is known")]
struct NoOrganization;

impl<F: DeserializeOwned + Send> FromRequestParts<HttpState> for Paging<F> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, Problem> {
        let (mut limit, mut cursor, mut rest) = (None, None, Vec::new());
        let query = parts.uri.query().unwrap_or_default().to_owned();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let slot = match key {
                "limit" => &mut limit,
                "cursor" => &mut cursor,
                _ => {
                    rest.push(pair);
                    continue;
                }
            };
            if slot.replace(value).is_some() {
                return Err(invalid_query(key, "repeated-key", format!("`{key}` is given twice")));
            }
        }
        let limit = limit.map(parse_limit).transpose()?.unwrap_or(PAGE_LIMIT_DEFAULT);
        let filter = filter(&rest.join("&"))?;
        let Bound(org) = *parts.extensions.get::<Bound>().ok_or_else(|| Problem::internal(&NoOrganization))?;
        rest.sort_unstable();
        let seal = seal(parts, state, org.uuid(), &rest.join("&")).await;
        let after = cursor.map(|cursor| seal.open(cursor).ok_or_else(invalid_cursor)).transpose()?;
        Ok(Self { filter, limit, after, seal })
    }
}

async fn seal(parts: &mut Parts, state: &HttpState, org: Uuid, filters: &str) -> Seal {
    let route = parts.extensions.get::<MatchedPath>().map_or_else(String::new, |path| path.as_str().to_owned());
    // The organization may be named by id or by slug; the other parts of the path belong to the list's identity.
    let within: Vec<u8> = match RawPathParams::from_request_parts(parts, state).await {
        Ok(params) => params
            .iter()
            .filter(|(key, _)| *key != "org")
            .flat_map(|(_, value)| [value.as_bytes(), b"/"].concat())
            .collect(),
        Err(_) => Vec::new(),
    };
    Seal::new(&state.config.cursor_key, &[route.as_bytes(), org.as_bytes(), &within, filters.as_bytes()])
}

fn parse_limit(text: &str) -> Result<u32, Problem> {
    text.parse().ok().filter(|limit| (1..=PAGE_LIMIT_MAX).contains(limit)).ok_or_else(|| {
        invalid_query("limit", "out-of-range", format!("`limit` is a whole number from 1 to {PAGE_LIMIT_MAX}"))
    })
}

fn invalid_query(name: &str, code: &str, message: String) -> Problem {
    Problem::new(Kind::InvalidQuery, message.clone()).at(format!("?{name}"), code, message)
}

pub(crate) fn invalid_cursor() -> Problem {
    let message = "the cursor is not one of this list with these filters: begin again without it";
    Problem::new(Kind::InvalidCursor, message).at("?cursor", "invalid-cursor", message)
}

/// Reads a query of the shape `F`; what `F` does not name is refused.
pub(crate) fn filter<F: DeserializeOwned>(query: &str) -> Result<F, Problem> {
    let uri: Uri =
        format!("/?{query}").parse().map_err(|_| Problem::new(Kind::InvalidQuery, "the query is not readable"))?;
    let Query(filter) = Query::<F>::try_from_uri(&uri).map_err(|rejection| {
        let text = rejection.body_text();
        let message = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
        // "name: what is wrong", as serde_path_to_error writes it, or what is wrong with `name`.
        let (name, message) = match message.split_once(": ") {
            Some((name, rest)) if !name.contains(' ') => (name, rest),
            _ => (message.split('`').nth(1).unwrap_or_default(), message),
        };
        invalid_query(name, json::code(message), message.to_owned())
    })?;
    Ok(filter)
}

/// A query of the shape `F` where there is no list.
pub(crate) struct QueryOf<F>(pub(crate) F);

impl<F: DeserializeOwned + Send> FromRequestParts<HttpState> for QueryOf<F> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &HttpState) -> Result<Self, Problem> {
        filter(parts.uri.query().unwrap_or_default()).map(Self)
    }
}

impl<F> Paging<F> {
    /// For lists by id.
    pub(crate) fn request(&self) -> Result<PageRequest, Problem> {
        let before = match &self.after {
            Some(position) => Some(Uuid::from_slice(position).map_err(|_| invalid_cursor())?),
            None => None,
        };
        Ok(PageRequest { before, limit: self.limit })
    }

    /// For lists by number: the number that the page before ended with.
    pub(crate) fn after_number(&self) -> Result<Option<i64>, Problem> {
        self.after
            .as_deref()
            .map(|position| position.try_into().map(i64::from_be_bytes).map_err(|_| invalid_cursor()))
            .transpose()
    }

    pub(crate) fn answer<T, V>(&self, page: Page<T>, view: impl FnMut(T) -> V) -> ListOf<V> {
        ListOf {
            items: page.items.into_iter().map(view).collect(),
            next_cursor: page.next.map(|id| self.seal.close(id.as_bytes())),
        }
    }

    /// As [`answer`](Self::answer) for lists by number, which were asked for one row more than the limit.
    pub(crate) fn answer_by_number<T, V>(
        &self,
        mut rows: Vec<T>,
        number: impl Fn(&T) -> i64,
        view: impl FnMut(T) -> V,
    ) -> ListOf<V> {
        let more = rows.len() > self.limit as usize;
        rows.truncate(self.limit as usize);
        let next_cursor = if more { rows.last().map(|row| self.seal.close(&number(row).to_be_bytes())) } else { None };
        ListOf { items: rows.into_iter().map(view).collect(), next_cursor }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Filters {
        action: Option<String>,
    }

    fn seal_of(parts: &[&[u8]]) -> Seal {
        Seal::new(&[7; 32], parts)
    }

    #[test]
    fn a_cursor_opens_where_it_was_made_and_nowhere_else() {
        let list = seal_of(&[b"/audit", b"org", b"action=a"]);
        let cursor = list.close(b"position");
        assert_eq!(list.open(&cursor).as_deref(), Some(&b"position"[..]));
        for other in [
            seal_of(&[b"/events", b"org", b"action=a"]),
            seal_of(&[b"/audit", b"other", b"action=a"]),
            seal_of(&[b"/audit", b"org", b"action=b"]),
            seal_of(&[b"/audito", b"rg", b"action=a"]),
            Seal::new(&[8; 32], &[b"/audit", b"org", b"action=a"]),
        ] {
            assert_eq!(other.open(&cursor), None);
        }
    }

    #[test]
    fn a_changed_cursor_is_refused_wherever_it_is_changed() {
        let list = seal_of(&[b"/audit"]);
        let cursor = list.close(&[1; 16]);
        for at in 0..cursor.len() {
            let mut bytes = cursor.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(changed == cursor || list.open(&changed).is_none(), "{at}");
        }
        for text in ["", "A", "AAAA", "====", "ü", &cursor[..cursor.len() - 1]] {
            assert_eq!(list.open(text), None, "{text}");
        }
    }

    #[test]
    fn unknown_and_repeated_parameters_are_refused() {
        assert_eq!(filter::<Filters>("").unwrap(), Filters { action: None });
        assert_eq!(filter::<Filters>("action=a%2Eb").unwrap(), Filters { action: Some("a.b".into()) });
        for (query, code) in [("acton=a", "unknown-field"), ("action=a&action=b", "repeated-key")] {
            let problem = filter::<Filters>(query).unwrap_err();
            assert_eq!((problem.slug(), problem.errors()[0].code.as_str()), ("invalid-query", code), "{query}");
        }
    }
}
