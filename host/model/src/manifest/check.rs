//! The rules of a manifest beyond its shape.

use std::collections::HashSet;

use serde_json::Value;
use url::Url;

use super::{
    CONTRACT, CONTRIBUTIONS_MAX, CapabilityAsk, Contribution, DESCRIPTION_CHARS_MAX, HEADERS_MAX, HOMEPAGE_CHARS_MAX,
    Inject, KINDS, LICENSE_CHARS_MAX, METHODS_MAX, Manifest, ManifestError, ORIGINS_MAX, OriginAsk, PATHS_MAX,
    PERMISSIONS_MAX, PermissionAsk, REASON_CHARS_MAX, SECRET_IN_PATH, TITLE_CHARS_MAX, VERSION_CHARS_MAX, push_pointer,
    schema,
};
use crate::grant::{OriginPattern, PATH_BYTES_MAX, climbs, is_host_owned_header, is_lower_header_name};
use crate::name::SecretName;

/// Kinds that the specification names and a later version brings.
const KINDS_LATER: &[&str] = &["kv", "files", "crm", "mail", "notify", "events"];

fn invalid<T>(path: impl Into<String>, problem: impl Into<String>) -> Result<T, ManifestError> {
    Err(ManifestError::Invalid { path: path.into(), problem: problem.into() })
}

/// Says clearly that a kind is not there yet, before its keys are called unknown.
pub(super) fn kinds_available(manifest: &Value) -> Result<(), ManifestError> {
    let permissions = manifest.get("permissions").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    for (at, permission) in permissions.iter().enumerate() {
        let kind = permission.get("kind").and_then(Value::as_str).unwrap_or_default();
        if KINDS_LATER.contains(&kind) {
            let problem =
                format!("permissions of kind {kind} are not available yet; available are {}", KINDS.join(", "));
            return invalid(format!("/permissions/{at}/kind"), problem);
        }
    }
    Ok(())
}

pub(super) fn manifest(manifest: &Manifest) -> Result<(), ManifestError> {
    head(manifest)?;
    contributions(manifest)?;
    permissions(manifest)?;
    let limits = &manifest.limits;
    for (name, asked) in [
        ("fuel", limits.fuel),
        ("wall_ms", limits.wall_ms),
        ("memory_bytes", limits.memory_bytes),
        ("table_elements", limits.table_elements),
    ] {
        if asked == Some(0) {
            return invalid(format!("/limits/{name}"), "0 would let no call succeed; leave it out for the default");
        }
    }
    Ok(())
}

fn head(manifest: &Manifest) -> Result<(), ManifestError> {
    if manifest.version.to_string().len() > VERSION_CHARS_MAX {
        return invalid("/version", format!("at most {VERSION_CHARS_MAX} characters"));
    }
    if !manifest.version.build.is_empty() {
        return invalid("/version", "build metadata (+…) is refused: two packages would share one version");
    }
    let patch = manifest.wit.strip_prefix(CONTRACT).map(|rest| rest.strip_prefix('.').unwrap_or(rest));
    let known = manifest.wit == CONTRACT
        || patch.is_some_and(|patch| {
            manifest.wit.len() > CONTRACT.len() + 1
                && manifest.wit.as_bytes()[CONTRACT.len()] == b'.'
                && patch.len() <= 5
                && patch.bytes().all(|b| b.is_ascii_digit())
        });
    if !known {
        return invalid("/wit", format!("this platform speaks {CONTRACT}"));
    }
    line("/title", &manifest.title, 1, TITLE_CHARS_MAX)?;
    prose("/description", &manifest.description, DESCRIPTION_CHARS_MAX)?;
    if let Some(license) = &manifest.license {
        line("/license", license, 1, LICENSE_CHARS_MAX)?;
    }
    if let Some(homepage) = &manifest.homepage {
        line("/homepage", homepage, 1, HOMEPAGE_CHARS_MAX)?;
        let scheme_known = Url::parse(homepage).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
        if !scheme_known {
            return invalid("/homepage", "a URL with the scheme https or http");
        }
    }
    Ok(())
}

fn contributions(manifest: &Manifest) -> Result<(), ManifestError> {
    let lists = [("actions", &manifest.actions), ("channels", &manifest.channels), ("factors", &manifest.factors)];
    let count: usize = lists.iter().map(|(_, list)| list.len()).sum();
    if count == 0 {
        return invalid("", "a package contributes at least one action, channel or factor");
    }
    if count > CONTRIBUTIONS_MAX {
        return invalid("", format!("{count} contributions; at most {CONTRIBUTIONS_MAX} are allowed"));
    }
    if !manifest.factors.is_empty() && !manifest.is_pure() {
        return invalid(
            "/factors",
            "factors are pure and stand in a package of their own, without actions and channels",
        );
    }
    let mut names = HashSet::new();
    for (key, list) in lists {
        for (at, contribution) in list.iter().enumerate() {
            let path = format!("/{key}/{at}");
            if !names.insert(contribution.name.as_str()) {
                return invalid(
                    format!("{path}/name"),
                    format!("{} is the name of two contributions", contribution.name),
                );
            }
            self::contribution(&path, contribution)?;
        }
    }
    Ok(())
}

fn contribution(path: &str, contribution: &Contribution) -> Result<(), ManifestError> {
    line(&format!("{path}/title"), &contribution.title, 1, TITLE_CHARS_MAX)?;
    prose(&format!("{path}/description"), &contribution.description, DESCRIPTION_CHARS_MAX)?;
    let schemas =
        [("settings", &contribution.settings), ("input", &contribution.input), ("output", &contribution.output)];
    for (key, schema) in schemas {
        if let Some(schema) = schema {
            schema::compile(schema).map_err(|error| {
                let mut place = format!("{path}/{key}");
                place.push_str(&error.path);
                ManifestError::Invalid { path: place, problem: error.problem }
            })?;
        }
    }
    Ok(())
}

fn permissions(manifest: &Manifest) -> Result<(), ManifestError> {
    if manifest.permissions.len() > PERMISSIONS_MAX {
        let count = manifest.permissions.len();
        return invalid("/permissions", format!("{count} permissions; at most {PERMISSIONS_MAX} are allowed"));
    }
    let mut secrets: HashSet<&SecretName> = HashSet::new();
    for (at, ask) in manifest.permissions.iter().enumerate() {
        let path = format!("/permissions/{at}");
        if manifest.is_pure() {
            let kind = ask.capability.kind();
            return invalid(format!("{path}/kind"), format!("a factor is pure and cannot have the permission {kind}"));
        }
        if let CapabilityAsk::Secret { name, .. } = &ask.capability
            && !secrets.insert(name)
        {
            return invalid(format!("{path}/name"), format!("the secret {name} is asked for twice; join both in one"));
        }
        permission(manifest, &path, ask)?;
    }
    Ok(())
}

fn permission(manifest: &Manifest, path: &str, ask: &PermissionAsk) -> Result<(), ManifestError> {
    line(&format!("{path}/reason"), &ask.reason, 1, REASON_CHARS_MAX)?;
    match &ask.capability {
        CapabilityAsk::Http { origins, methods, paths } => {
            count(&format!("{path}/origins"), origins.len(), 1, ORIGINS_MAX)?;
            count(&format!("{path}/methods"), methods.len(), 1, METHODS_MAX)?;
            count(&format!("{path}/paths"), paths.len(), 1, PATHS_MAX)?;
            setting_origins(manifest, &format!("{path}/origins"), origins)
        }
        CapabilityAsk::Secret { inject, .. } => {
            let path = format!("{path}/inject");
            self::inject(&path, inject, |origin| match origin {
                OriginAsk::Pattern(pattern) => Some(pattern),
                OriginAsk::FromSetting { .. } => None,
            })?;
            setting_origins(manifest, &format!("{path}/origins"), &inject.origins)
        }
    }
}

/// Origins from settings name a setting that the package has.
fn setting_origins(manifest: &Manifest, path: &str, origins: &[OriginAsk]) -> Result<(), ManifestError> {
    for (at, origin) in origins.iter().enumerate() {
        let OriginAsk::FromSetting { from_setting } = origin else { continue };
        let path = format!("{path}/{at}/from_setting");
        line(&path, from_setting, 1, 64)?;
        let schemas = manifest.contributions().filter_map(|(_, contribution)| contribution.settings.as_ref());
        let mut named = schemas.map(|schema| match schema.get("properties") {
            Some(properties) => properties.get(from_setting).is_some(),
            // Composed elsewhere in the schema: nothing to compare with.
            None => true,
        });
        if !named.any(|named| named) {
            return invalid(path, format!("no contribution has a setting named {from_setting}"));
        }
    }
    Ok(())
}

/// The rules of `inject`, for asks and for grants.
pub(crate) fn inject<'a, O>(
    path: &str,
    inject: &'a Inject<O>,
    pattern: impl Fn(&'a O) -> Option<&'a OriginPattern>,
) -> Result<(), ManifestError> {
    count(&format!("{path}/origins"), inject.origins.len(), 0, ORIGINS_MAX)?;
    count(&format!("{path}/headers"), inject.headers.len(), 0, HEADERS_MAX)?;
    for (at, origin) in inject.origins.iter().enumerate() {
        if pattern(origin).is_some_and(OriginPattern::is_any_public) {
            return invalid(format!("{path}/origins/{at}"), "a secret goes to named hosts, never to any");
        }
    }
    for (at, header) in inject.headers.iter().enumerate() {
        let path = format!("{path}/headers/{at}");
        if !is_lower_header_name(header) {
            return invalid(path, "the name of a header, in lower case");
        }
        if is_host_owned_header(header) {
            return invalid(path, format!("the header {header} belongs to the platform"));
        }
        if inject.headers[..at].contains(header) {
            return invalid(path, format!("{header} is named twice"));
        }
    }
    if let Some(template) = &inject.path
        && let Err(problem) = path_template(template)
    {
        return invalid(format!("{path}/path"), problem);
    }
    Ok(())
}

fn path_template(template: &str) -> Result<(), &'static str> {
    if template.len() > PATH_BYTES_MAX || !template.starts_with('/') {
        return Err("a path that begins with /");
    }
    if template.matches(SECRET_IN_PATH).count() != 1 {
        return Err("it holds {secret} exactly once");
    }
    let rest = template.replacen(SECRET_IN_PATH, "secret", 1);
    if rest.contains(['?', '#', '\\', '*', '{', '}']) {
        return Err("it has no query, fragment, backslash, star or further brace");
    }
    // What the parser would rewrite could never equal a request's path.
    match Url::parse(&format!("https://h{rest}")) {
        Ok(url) if url.path() == rest && !climbs(&rest) => Ok(()),
        _ => Err("it is not written as the path of a URL"),
    }
}

fn count(path: &str, count: usize, min: usize, max: usize) -> Result<(), ManifestError> {
    if count < min {
        return invalid(path, "it is empty, and empty means nothing");
    }
    if count > max {
        return invalid(path, format!("{count} entries; at most {max} are allowed"));
    }
    Ok(())
}

/// One line of plain text.
fn line(path: &str, text: &str, min: usize, max: usize) -> Result<(), ManifestError> {
    if text.contains('\n') {
        return invalid(path, "it is one line");
    }
    if text.trim().chars().count() < min {
        return invalid(path, "it must not be empty");
    }
    prose(path, text, max)
}

/// Plain text: nothing that could rewrite what an admin reads.
fn prose(path: &str, text: &str, max: usize) -> Result<(), ManifestError> {
    if text.chars().count() > max {
        return invalid(path, format!("at most {max} characters"));
    }
    let misleading = |c: char| {
        (c.is_control() && c != '\n' && c != '\t') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if text.chars().any(misleading) {
        return invalid(path, "it holds control characters or marks that turn the writing direction");
    }
    Ok(())
}

/// Adds a key to a path, for checks that walk a document.
pub(super) fn below(path: &str, key: &str) -> String {
    let mut path = path.to_owned();
    push_pointer(&mut path, key);
    path
}
