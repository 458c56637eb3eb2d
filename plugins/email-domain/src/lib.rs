//! Judges a lead by the domain of its e-mail address: a company's, a free mailbox, a role account, or one for throwing away.

mod domains;

use bulkhead_sdk::Score;
use schemars::JsonSchema;
use serde::Deserialize;

/// Points for each class, and lists that win over the built-in ones. Domains in lists match their subdomains too.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    #[schemars(range(min = -100, max = 100))]
    company_points: f64,
    #[schemars(range(min = -100, max = 100))]
    freemail_points: f64,
    #[schemars(range(min = -100, max = 100))]
    disposable_points: f64,
    /// Added for addresses such as `info@`, whatever the domain.
    #[schemars(range(min = -100, max = 100))]
    role_points: f64,
    /// Customers that matter: `preferred_points` in place of `company_points`.
    #[schemars(length(max = 1000), inner(length(max = 253)))]
    preferred_domains: Vec<String>,
    #[schemars(range(min = -100, max = 100))]
    preferred_points: f64,
    /// Free mail providers beside the built-in ones.
    #[schemars(length(max = 1000), inner(length(max = 253)))]
    freemail_domains: Vec<String>,
    /// Domains that count as a company's although the built-in lists say otherwise.
    #[schemars(length(max = 1000), inner(length(max = 253)))]
    company_domains: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            company_points: 20.0,
            freemail_points: -5.0,
            disposable_points: -30.0,
            role_points: -10.0,
            preferred_domains: Vec::new(),
            preferred_points: 40.0,
            freemail_domains: Vec::new(),
            company_domains: Vec::new(),
        }
    }
}

/// The fields of a lead that this factor reads.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct Fields {
    #[serde(default)]
    email: Option<String>,
}

fn email_domain(settings: &Settings, fields: &Fields) -> Score {
    let Some(email) = fields.email.as_deref().map(str::trim).filter(|email| !email.is_empty()) else {
        return Score::none("no e-mail address");
    };
    let Some((local, domain)) = split(email) else { return Score::none("not an e-mail address") };
    let (points, class) = judge(settings, &domain);
    if is_role(&local) {
        return Score::new(points + settings.role_points, format!("role account {local}@ at {class} {domain}"));
    }
    Score::new(points, format!("{class} {domain}"))
}

fn judge(settings: &Settings, domain: &str) -> (f64, &'static str) {
    let listed = |list: &[String]| list.iter().any(|entry| is_or_below(domain, &entry.trim().to_ascii_lowercase()));
    let built_in = |list: &[&str]| list.iter().any(|entry| is_or_below(domain, entry));
    if listed(&settings.preferred_domains) {
        (settings.preferred_points, "preferred company")
    } else if listed(&settings.company_domains) {
        (settings.company_points, "company")
    } else if built_in(domains::DISPOSABLE) {
        (settings.disposable_points, "disposable mailbox at")
    } else if listed(&settings.freemail_domains) || built_in(domains::FREEMAIL) {
        (settings.freemail_points, "free mailbox at")
    } else {
        (settings.company_points, "company")
    }
}

/// Local part and domain in lower case; `None` for what no mail could reach.
fn split(email: &str) -> Option<(String, String)> {
    let (local, domain) = email.rsplit_once('@')?;
    let domain = domain.strip_suffix('.').unwrap_or(domain).to_lowercase();
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_alphanumeric() || c == '-')
    };
    let fits = !local.is_empty() && local.len() <= 64 && domain.len() <= 253 && domain.contains('.');
    if !fits || local.contains(char::is_whitespace) || !domain.split('.').all(label) {
        return None;
    }
    // `sales+fair@` is `sales@`.
    let local = local.split('+').next().unwrap_or(local).to_lowercase();
    Some((local, domain))
}

fn is_role(local: &str) -> bool {
    domains::ROLES.contains(&local)
}

fn is_or_below(domain: &str, entry: &str) -> bool {
    match domain.strip_suffix(entry) {
        Some("") => true,
        Some(rest) => !entry.is_empty() && rest.ends_with('.'),
        None => false,
    }
}

bulkhead_sdk::factors! { "email-domain" => email_domain }

#[cfg(test)]
mod tests {
    use bulkhead_sdk::testing::{assert_schema, factor_fixtures};

    use super::*;

    #[test]
    fn fixtures_end_as_written() {
        factor_fixtures::<Factors>("fixtures");
    }

    #[test]
    fn schemas_are_those_of_the_types() {
        assert_schema::<Settings>("schemas/settings.json");
        assert_schema::<Fields>("schemas/fields.json");
    }

    #[test]
    fn a_domain_is_matched_by_whole_labels() {
        assert!(is_or_below("gmail.com", "gmail.com"));
        assert!(is_or_below("mail.acme.example", "acme.example"));
        assert!(!is_or_below("notgmail.com", "gmail.com"));
        assert!(!is_or_below("gmail.com.evil.example", "gmail.com"));
        assert!(!is_or_below("gmail.com", ""));
    }

    #[test]
    fn lists_are_in_lower_case_and_without_repetition() {
        for list in [domains::FREEMAIL, domains::DISPOSABLE, domains::ROLES] {
            let mut sorted = list.to_vec();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(sorted, list);
            assert!(list.iter().all(|entry| *entry == entry.to_lowercase()));
        }
    }
}
