//! A notification in Slack's blocks. All text comes from strangers.

use serde_json::{Value, json};

use crate::{Notification, Severity};

/// Slack's bounds, in characters: <https://api.slack.com/reference/block-kit/blocks>.
const HEADER_CHARS_MAX: usize = 150;
const SECTION_CHARS_MAX: usize = 3_000;
const FIELD_CHARS_MAX: usize = 2_000;
const FIELDS_MAX: usize = 10;
/// Above 40,000 Slack cuts a message; 4,000 is what it recommends.
const FALLBACK_CHARS_MAX: usize = 4_000;

/// What stands in a notification on a phone, and what is shown where blocks are not.
pub(crate) fn fallback(notification: &Notification) -> String {
    match &notification.title {
        Some(title) => escape(&format!("{title}: {}", notification.text), FALLBACK_CHARS_MAX),
        None => escape(&notification.text, FALLBACK_CHARS_MAX),
    }
}

pub(crate) fn blocks(notification: &Notification) -> Value {
    let mut blocks = Vec::new();
    if let Some(title) = notification.title.as_deref().filter(|title| !title.trim().is_empty()) {
        let title = cut(title, HEADER_CHARS_MAX);
        blocks.push(json!({ "type": "header", "text": { "type": "plain_text", "text": title, "emoji": false } }));
    }
    if let Some(severity) = notification.severity {
        let (mark, word) = match severity {
            Severity::Info => (":information_source:", "Info"),
            Severity::Low => (":large_blue_circle:", "Low"),
            Severity::Medium => (":large_yellow_circle:", "Medium"),
            Severity::High => (":large_orange_circle:", "High"),
            Severity::Critical => (":red_circle:", "Critical"),
        };
        blocks
            .push(json!({ "type": "context", "elements": [{ "type": "mrkdwn", "text": format!("{mark} *{word}*") }] }));
    }
    blocks.push(json!({ "type": "section", "text": mrkdwn(&notification.text, SECTION_CHARS_MAX) }));
    if !notification.fields.is_empty() {
        let field = |field: &crate::Field| {
            let name = escape(&field.name, 200);
            let value = escape(&field.value, FIELD_CHARS_MAX - name.chars().count() - 3);
            json!({ "type": "mrkdwn", "text": format!("*{name}*\n{value}") })
        };
        let fields: Vec<Value> = notification.fields.iter().take(FIELDS_MAX).map(field).collect();
        blocks.push(json!({ "type": "section", "fields": fields }));
    }
    Value::Array(blocks)
}

fn mrkdwn(text: &str, chars_max: usize) -> Value {
    json!({ "type": "mrkdwn", "text": escape(text, chars_max) })
}

/// Escapes the three characters that Slack gives a meaning (mentions, links, `<!channel>`), as its documentation asks, and cuts so that the
/// result has at most `chars_max` characters and no half entity at its end.
fn escape(text: &str, chars_max: usize) -> String {
    let mut escaped = String::with_capacity(text.len());
    let mut count = 0;
    for c in text.chars() {
        let (entity, len) = match c {
            '&' => ("&amp;", 5),
            '<' => ("&lt;", 4),
            '>' => ("&gt;", 4),
            _ => ("", 1),
        };
        // Room for the mark that something is missing.
        if count + len > chars_max.saturating_sub(1) {
            escaped.push('…');
            return escaped;
        }
        count += len;
        if entity.is_empty() {
            escaped.push(c);
        } else {
            escaped.push_str(entity);
        }
    }
    escaped
}

fn cut(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    let mut text: String = text.chars().take(chars_max - 1).collect();
    text.push('…');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mentions_and_links_lose_their_meaning() {
        assert_eq!(
            escape("<!channel> <@U1> <https://evil|x> & co", 200),
            "&lt;!channel&gt; &lt;@U1&gt; &lt;https://evil|x&gt; &amp; co"
        );
    }

    #[test]
    fn no_entity_is_cut_in_half() {
        for chars_max in 1..40 {
            let escaped = escape("a&b<c>d&e<f>g&h", chars_max);
            assert!(escaped.chars().count() <= chars_max, "{escaped} in {chars_max}");
            let rest = escaped.trim_end_matches('…').replace("&amp;", "").replace("&lt;", "").replace("&gt;", "");
            assert!(!rest.contains(['&', '<', '>', ';']), "{escaped} in {chars_max}");
        }
        assert_eq!(escape("ab", 3), "ab");
    }

    #[test]
    fn every_part_stays_inside_slacks_bounds() {
        let long = "&".repeat(12_000);
        let field = crate::Field { name: "&".repeat(200), value: long.clone() };
        let notification = Notification {
            channel: None,
            text: long.clone(),
            title: Some("ü".repeat(500)),
            severity: Some(Severity::High),
            fields: vec![field; 50],
        };
        let blocks = blocks(&notification);
        let chars =
            |pointer: &str| blocks.pointer(pointer).and_then(Value::as_str).map_or(0, |text| text.chars().count());
        assert_eq!(chars("/0/text/text"), HEADER_CHARS_MAX);
        assert!((2_900..=SECTION_CHARS_MAX).contains(&chars("/2/text/text")));
        assert_eq!(blocks.pointer("/3/fields").and_then(Value::as_array).map(Vec::len), Some(FIELDS_MAX));
        assert!((1_900..=FIELD_CHARS_MAX).contains(&chars("/3/fields/0/text")));
    }
}
