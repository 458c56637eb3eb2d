use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn render(template: &Value, context: &Value) -> Result<Value, TemplateError> {
    render_value(template, context)
}

fn context() -> Value {
    json!({
        "trigger": { "body": { "issue": { "title": "Crash", "number": 12, "z": 1, "a": 2 }, "labels": [{ "name": "bug" }, { "name": "ui" }],
            "big": 18_446_744_073_709_551_615_u64, "nothing": null, "yes": true, "price": 2.5 } },
        "vars": { "channel": "#support" },
    })
}

#[test]
fn text_and_typed_values() {
    for (template, expected) in [
        ("plain", json!("plain")),
        ("{ not a template }", json!("{ not a template }")),
        ("New: {{ trigger.body.issue.title }}", json!("New: Crash")),
        ("{{ trigger.body.issue.number }}", json!(12)),
        ("  {{ trigger.body.issue.number }} ", json!(12)),
        ("{{ trigger.body.big }}", json!(18_446_744_073_709_551_615_u64)),
        ("{{ trigger.body.nothing }}", json!(null)),
        ("{{ trigger.body.labels[1].name }}", json!("ui")),
        ("{{ trigger[\"body\"].yes }}", json!(true)),
        ("{{ trigger['body'].yes }}", json!(true)),
        ("#{{ trigger.body.issue.number }}: {{ trigger.body.yes }}{{ trigger.body.nothing }}", json!("#12: true")),
        ("{{ trigger.body.labels | map(attribute='name') | join(', ') }}", json!("bug, ui")),
        ("{{ trigger.body.labels | length }}", json!(2)),
        ("{{ trigger.body.issue.title | upper }}!", json!("CRASH!")),
        ("{{ trigger.body.issue.title | truncate(3) }}", json!("Cr…")),
        ("{{ trigger.body.issue.title | replace('Cr', 'Fl') }}", json!("Flash")),
        ("{{ trigger.body.missing | default('none') }}", json!("none")),
        ("{{ trigger.body.issue.number | plus(1) }}", json!(13)),
        ("{{ trigger.body.price | times(2) }}", json!(5.0)),
        ("{{ trigger.body.issue.number + 1 }}", json!(13)),
        ("{{ 'many' if trigger.body.issue.number > 10 else 'few' }}", json!("many")),
        ("{{ trigger.body.issue is defined and trigger.body.yes }}", json!(true)),
        ("{{ trigger.nobody is not defined and not (vars.nobody is defined) }}", json!(true)),
        ("{{ 7 // 2 }}/{{ 7 % 4 }}/{{ 7 - 2 }}/{{ 1 / 2 }}", json!("3/3/5/0.5")),
        ("{{ 'bug' in (trigger.body.labels | map(attribute='name')) }}", json!(true)),
        ("{{ 'a b&c' | urlencode }}", json!("a%20b%26c")),
        ("x{# a comment }} #}y", json!("xy")),
        ("{{ '}}' }}{{ \"{%\" }}", json!("}}{%")),
        ("{{ {'a': {'b': 1}} }}", json!({ "a": { "b": 1 } })),
        ("labels: {{ trigger.body.labels }}", json!("labels: [{\"name\":\"bug\"},{\"name\":\"ui\"}]")),
        ("{{ trigger.body.labels | tojson }}", json!("[{\"name\":\"bug\"},{\"name\":\"ui\"}]")),
    ] {
        assert_eq!(render(&json!(template), &context()), Ok(expected), "{template}");
    }
}

#[test]
fn a_reference_copies_the_value_as_it_is() {
    let rendered = render(&json!({ "all": "{{ trigger.body.issue }}" }), &context()).unwrap();
    assert_eq!(serde_json::to_string(&rendered).unwrap(), r#"{"all":{"title":"Crash","number":12,"z":1,"a":2}}"#);
}

#[test]
fn undefined_is_an_error_that_names_its_place() {
    let template = json!({ "a": ["ok", { "b/c": "x {{ trigger.body.nobody }}" }] });
    let error = render(&template, &context()).unwrap_err();
    assert_eq!(error.path, "/a/1/b~1c");
    assert!(error.message.contains("`trigger.body.nobody` is missing"), "{error}");
    for template in
        ["{{ nobody }}", "{{ nobody | upper }}", "{{ trigger.nobody.x | default('y') }}", "{{ 1 if nobody else 2 }}"]
    {
        assert!(render(&json!(template), &context()).is_err(), "{template}");
    }
}

#[test]
fn what_could_run_away_is_refused_when_saved() {
    for (template, reason) in [
        ("{% for x in y %}{% endfor %}", "statements"),
        ("{% include 'x' %}", "statements"),
        ("{{ 'x' * 1000000 }}", "`*`"),
        ("{{ x", "not closed"),
        ("{{ }}", "empty"),
        ("{# x", "not closed"),
        ("{{ x | nope }}", "unknown filter `nope`"),
        ("{{ x | map('upper') | shell }}", "unknown filter `shell`"),
        ("{{ x is odd }}", "unknown test `odd`"),
        ("{{ range(9) }}", "no functions"),
        ("{{ x.upper() }}", "no functions"),
        ("{{ (x)(1) }}", "no functions"),
        ("{{ a b }}", "unexpected"),
    ] {
        let errors = Template::check(&json!(["", template])).unwrap_err();
        assert_eq!(errors[0].path, "/1", "{template}");
        assert!(errors[0].message.contains(reason), "{template}: {}", errors[0].message);
    }
    let joins = format!("{{{{ {} }}}}", vec!["a"; JOINS_MAX + 2].join(" ~ "));
    assert!(Template::check(&json!(joins)).unwrap_err()[0].message.contains("more than 32"));
    let filters = format!("{{{{ a{} }}}}", "|upper".repeat(FILTERS_MAX + 1));
    assert!(Template::check(&json!(filters)).unwrap_err()[0].message.contains("more than 16 filters"));
    let long = format!("{{{{ {} }}}}", vec!["a"; TOKENS_MAX].join(" and "));
    assert!(Template::check(&json!(long)).unwrap_err()[0].message.contains("more than 200"));
    assert!(Template::check(&json!(format!("{{{{ a }}}}{}", "x".repeat(SOURCE_BYTES_MAX)))).is_err());
    assert!(Template::check(&json!("{{ a }} ".repeat(600))).is_err());
}

#[test]
fn the_deepest_expressions_fit_a_small_stack() {
    let run = || {
        for source in [
            format!("{}x", "-".repeat(TOKENS_MAX - 1)),
            format!("{}x", "not ".repeat(TOKENS_MAX - 1)),
            format!("{}x{}", "(".repeat(99), ")".repeat(99)),
            format!("{}x{}", "[".repeat(99), "]".repeat(99)),
            vec!["x"; 99].join(" and "),
            vec!["x"; 99].join("-"),
            format!("x{}", ".a".repeat(99)),
            format!("x{}", "|string".repeat(99)),
            format!("{}y", "1 if x else ".repeat(49)),
        ] {
            let template = json!(format!("{{{{ {source} }}}} "));
            let _ = render(&template, &json!({ "x": 1, "y": 2 }));
        }
    };
    // A quarter of what a worker's thread has.
    std::thread::Builder::new().stack_size(512 * 1024).spawn(run).unwrap().join().unwrap();
}

#[test]
fn output_is_capped() {
    let context = json!({ "x": "x".repeat(600_000), "l": vec!["y"; 300_000] });
    for template in [
        json!("{{ x }}{{ x }}"),
        json!(["{{ x }}", "{{ x }}"]),
        json!("{{ x ~ x }}"),
        json!("{{ x | replace('x', 'yy') }}"),
        json!("{{ l | join('abcd') }}"),
        json!("{{ [x, x] | tojson }}"),
        json!({ "a": "{{ [x, x] }}" }),
    ] {
        let error = render(&template, &context).unwrap_err();
        assert!(error.message.contains("larger than"), "{error}");
    }
    assert!(render(&json!("{{ x }}"), &context).is_ok());
}

#[test]
fn depth_is_capped() {
    let deep = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!([inner]));
    let template = (0..60).fold(json!("{{ x }}"), |inner, _| json!([inner]));
    assert!(render(&template, &json!({ "x": deep(40) })).is_ok());
    assert!(render(&template, &json!({ "x": deep(41) })).unwrap_err().message.contains("nested deeper"));
}

#[test]
fn references_are_found() {
    let template =
        json!({ "a": "{{ vars.channel }} {{ trigger.body.x | default(steps.y.output) }}", "b": ["{{ run.id }}"] });
    let names: Vec<(String, String)> =
        Template::compile(&template).unwrap().references().into_iter().map(|r| (r.path, r.name)).collect();
    let expected = [("/a", "steps.y.output"), ("/a", "trigger.body.x"), ("/a", "vars.channel"), ("/b/0", "run.id")];
    assert_eq!(names, expected.map(|(path, name)| (path.to_owned(), name.to_owned())));
}

proptest! {
    #[test]
    fn any_text_is_rendered_or_refused(
        text in "\\PC{0,60}|[{}%#|()a-c'\".~+ 0-9\\[\\]\\\\-]{0,40}|(\\{\\{ *[a-c.|~+0-9' ]{0,12} *\\}\\}x?){0,3}",
    ) {
        let context = json!({ "a": { "b": [1, "x"] }, "b": "y", "c": 3 });
        match Template::compile(&json!(text)) {
            Ok(template) => {
                if let Ok(value) = template.render(&context) {
                    prop_assert!(json::encoded_len(&value) <= OUTPUT_BYTES_MAX);
                    if !scan::has_tags(&text) {
                        prop_assert_eq!(value, json!(text));
                    }
                }
            }
            Err(errors) => prop_assert!(!errors.is_empty()),
        }
    }

    #[test]
    fn plain_references_keep_any_value(value in crate::condition::tests::any_json()) {
        prop_assume!(!matches!(&value, Value::Number(n) if n.as_f64().is_some_and(|f| !f.is_finite())));
        let context = json!({ "v": value });
        prop_assert_eq!(render(&json!(["{{ v }}"]), &context).unwrap(), json!([context["v"]]));
    }
}
