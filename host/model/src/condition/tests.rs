use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn condition(tree: &Value) -> Condition {
    Condition::parse(tree).unwrap_or_else(|problems| panic!("{tree}: {problems:?}"))
}

fn holds(field: &str, op: &str, operand: &Value, root: &Value) -> bool {
    condition(&json!({ "field": field, "op": op, "value": operand })).eval(root)
}

fn problems(tree: &Value) -> Vec<ConditionProblem> {
    Condition::parse(tree).err().unwrap_or_default()
}

#[test]
fn each_operator_has_cases_that_hold_and_cases_that_do_not() {
    let root = json!({
        "text": "Hello, world", "n": 5, "f": 2.5, "big": 9_007_199_254_740_993_u64, "yes": true, "null": null,
        "list": ["bug", 7, null], "at": "2026-11-21T09:00:00+01:00", "object": { "a": 1 },
    });
    for (field, op, operand, expected) in [
        ("text", "eq", json!("Hello, world"), true),
        ("text", "eq", json!("hello, world"), false),
        ("n", "eq", json!(5.0), true),
        ("n", "eq", json!("5"), false),
        ("big", "eq", json!(9_007_199_254_740_992_u64), false),
        ("big", "gt", json!(9_007_199_254_740_992.0), true),
        ("yes", "eq", json!(true), true),
        ("yes", "eq", json!(1), false),
        ("null", "eq", json!(null), true),
        ("n", "ne", json!(5), false),
        ("n", "ne", json!("5"), true),
        ("n", "gt", json!(4.9), true),
        ("n", "gt", json!(5), false),
        ("n", "gte", json!(5), true),
        ("n", "lt", json!(5.1), true),
        ("f", "lte", json!(2.5), true),
        ("text", "gt", json!(4), false),
        ("at", "gte", json!("2026-11-21T08:00:00Z"), true),
        ("at", "gt", json!("2026-11-21T08:00:00Z"), false),
        ("at", "lt", json!("2026-11-22"), true),
        ("text", "lt", json!("2026-11-22"), false),
        ("text", "in", json!(["x", "Hello, world"]), true),
        ("text", "not_in", json!(["x", "y"]), true),
        ("list", "in", json!(["bug"]), false),
        ("text", "contains", json!("lo, w"), true),
        ("list", "contains", json!(7.0), true),
        ("list", "contains", json!(null), true),
        ("list", "contains", json!("bu"), false),
        ("n", "contains", json!(5), false),
        ("text", "startswith", json!("Hell"), true),
        ("text", "endswith", json!("world"), true),
        ("n", "startswith", json!("5"), false),
        ("null", "exists", json!(true), true),
        ("null", "exists", json!(false), false),
        ("text", "matches", json!("^H.*d$"), true),
        ("text", "matches", json!("^world"), false),
        ("n", "between", json!([5, 6]), true),
        ("n", "between", json!([5.5, 6]), false),
        ("at", "between", json!(["2026-11-21", "2026-11-22"]), true),
        ("object.a", "eq", json!(1), true),
    ] {
        assert_eq!(holds(field, op, &operand, &root), expected, "{field} {op} {operand}");
    }
}

#[test]
fn a_missing_field_is_not_null() {
    let root = json!({ "a": { "b": null } });
    for (op, operand, expected) in [
        ("eq", json!(null), false),
        ("ne", json!(null), true),
        ("ne", json!("x"), true),
        ("in", json!([null]), false),
        ("not_in", json!([null]), true),
        ("exists", json!(true), false),
        ("exists", json!(false), true),
        ("lt", json!(5), false),
        ("contains", json!("x"), false),
    ] {
        assert_eq!(holds("a.c", op, &operand, &root), expected, "{op}");
        assert_eq!(holds("a.b.c", op, &operand, &root), expected, "below null: {op}");
    }
}

#[test]
fn each_means_any_element_and_its_negations_none() {
    let root =
        json!({ "labels": [{ "name": "bug" }, { "name": "ui" }, { "id": 3 }], "rows": [[1, 2], [3]], "none": [] });
    assert!(holds("labels[*].name", "eq", &json!("ui"), &root));
    assert!(!holds("labels[*].name", "ne", &json!("ui"), &root));
    assert!(holds("labels[*].name", "ne", &json!("api"), &root));
    assert!(holds("labels[*].name", "in", &json!(["x", "bug"]), &root));
    assert!(!holds("labels[*].name", "not_in", &json!(["x", "bug"]), &root));
    assert!(holds("labels[*].id", "exists", &json!(true), &root));
    assert!(holds("rows[*][*]", "gt", &json!(2), &root));
    assert!(holds("rows[0][1]", "eq", &json!(2), &root));
    assert!(!holds("none[*]", "exists", &json!(true), &root));
    assert!(!holds("rows[7]", "exists", &json!(true), &root));
}

#[test]
fn paths_are_read_as_written() {
    let root = json!({ "a.b": { "c d": [{ "é": 1 }] }, "x-y": 2 });
    assert!(holds(r#"["a.b"]["c d"][0].é"#, "eq", &json!(1), &root));
    assert!(holds("x-y", "eq", &json!(2), &root));
    for bad in [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "a[",
        "a[]",
        "a[-1]",
        "a[1",
        "a]",
        "a[*",
        "a[1]b",
        "a b",
        "a[\"x]",
        "a[99999999999]",
    ] {
        assert!(FieldPath::parse(bad).is_err(), "{bad}");
    }
    assert!(FieldPath::parse(&"a.".repeat(300)).is_err());
    assert!(FieldPath::parse(&format!("a{}", "[0]".repeat(PATH_SEGMENTS_MAX))).is_err());
}

#[test]
fn every_problem_is_reported_with_its_pointer() {
    let tree = json!({ "all": [
        { "field": "a", "op": "equal", "value": 1 },
        { "any": [{ "field": "a..b", "op": "gt", "value": "tall" }, { "not": [] }] },
        { "field": "a", "op": "matches", "value": "(" },
        { "field": "a", "op": "eq" },
        { "field": "a", "op": "between", "value": [3, 1] },
        { "field": "a", "op": "between", "value": [1, "2026-01-01"] },
        { "field": "a", "op": "in", "value": "x" },
        { "field": "a", "op": "eq", "value": {}, "extra": 1 },
        { "all": [], "any": [] },
        { "any": [] },
        7,
    ] });
    let found: Vec<(String, String)> = problems(&tree).into_iter().map(|p| (p.path, p.message)).collect();
    let paths: Vec<&str> = found.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "/all/0/op",
            "/all/1/any/0/field",
            "/all/1/any/0/value",
            "/all/1/any/1/not",
            "/all/2/value",
            "/all/3",
            "/all/4/value",
            "/all/5/value",
            "/all/6/value",
            "/all/7",
            "/all/7/value",
            "/all/8",
            "/all/9/any",
            "/all/10",
        ],
        "{found:#?}"
    );
    assert!(found[0].1.contains("known are eq ne gt"), "{}", found[0].1);
    assert!(found[4].1.contains("unclosed group"), "{}", found[4].1);
}

#[test]
fn size_and_depth_are_bounded() {
    let nested =
        |levels: usize| (0..levels).fold(json!({ "field": "a", "op": "exists" }), |inner, _| json!({ "not": inner }));
    assert!(Condition::parse(&nested(DEPTH_MAX - 1)).is_ok());
    let found = problems(&nested(DEPTH_MAX));
    assert_eq!(found.len(), 1);
    assert!(found[0].message.contains("deeper than 20"), "{found:?}");
    assert_eq!(found[0].path, "/not".repeat(DEPTH_MAX));
    // Built without text, so that no JSON reader refuses it first.
    assert_eq!(problems(&nested(500)).len(), 1);

    let wide = |tests: usize| json!({ "all": vec![json!({ "field": "a", "op": "exists" }); tests] });
    assert!(Condition::parse(&wide(NODES_MAX - 1)).is_ok());
    assert_eq!(problems(&wide(100_000)).len(), 1);
    assert_eq!(problems(&json!({ "field": "a", "op": "in", "value": vec![1; LIST_MAX + 1] })).len(), 1);
    assert_eq!(problems(&json!({ "field": "a", "op": "eq", "value": "x".repeat(OPERAND_BYTES_MAX + 1) })).len(), 1);
    let patterns = |count: usize| json!({ "any": vec![json!({ "field": "a", "op": "matches", "value": "x" }); count] });
    assert!(Condition::parse(&patterns(PATTERNS_MAX)).is_ok());
    assert_eq!(problems(&patterns(PATTERNS_MAX + 1)).len(), 1);
    let hostile = json!({ "field": "a", "op": "matches", "value": r"(\w{1000}){1000}" });
    assert!(problems(&hostile)[0].message.contains("too large"), "{:?}", problems(&hostile));
}

#[test]
fn a_hostile_expression_stays_linear() {
    let pattern = condition(&json!({ "field": "t", "op": "matches", "value": "(a+)+$" }));
    let root = json!({ "t": format!("{}b", "a".repeat(100_000)) });
    let began = std::time::Instant::now();
    assert!(!pattern.eval(&root));
    assert!(began.elapsed() < std::time::Duration::from_secs(20), "a backtracking engine would never return");
}

#[test]
fn the_explanation_says_what_was_seen() {
    let tree = json!({ "any": [
        { "field": "n", "op": "gt", "value": 3 },
        { "not": { "field": "missing", "op": "eq", "value": null } },
        { "field": "n", "op": "eq", "value": "2" },
        { "field": "list", "op": "eq", "value": "x" },
    ] });
    let explanation = condition(&tree).explain(&json!({ "n": 2, "list": ["x"] }));
    let shown = serde_json::to_value(&explanation).unwrap();
    assert_eq!(
        shown,
        json!({ "op": "any", "result": true, "children": [
            { "op": "gt", "result": false, "field": "n", "expected": 3, "actual": 2 },
            { "op": "not", "result": true, "children": [
                { "op": "eq", "result": false, "field": "missing", "expected": null, "note": "the field is missing" } ] },
            { "op": "eq", "result": false, "field": "n", "expected": "2", "actual": 2,
              "note": "a number is compared with text" },
            { "op": "eq", "result": false, "field": "list", "expected": "x", "actual": ["x"],
              "note": "a list is compared with text; [*] after the field's name looks at each element" },
        ] })
    );
    let back: Explanation = serde_json::from_value(shown).unwrap();
    assert!(!back.children[0].result && back.children[0].actual == Some(json!(2)));
}

#[test]
fn an_explanation_stays_small() {
    let root = json!({ "t": "x".repeat(1_000_000), "l": vec!["y".repeat(1000); 1000] });
    let tree =
        json!({ "any": [{ "field": "t", "op": "eq", "value": "z" }, { "field": "l[*]", "op": "eq", "value": "z" }] });
    let text = serde_json::to_string(&condition(&tree).explain(&root)).unwrap();
    assert!(text.len() < 5_000, "{}", text.len());
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3_i64..4).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-c]{0,2}".prop_map(Value::from),
        Just(json!("2026-11-21T08:00:00Z")),
        Just(json!("2026-11-20")),
    ]
}

pub(crate) fn any_json() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(5, 48, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::vec(("[a-c]|name|field|op|value|all|any|not|type|steps", inner), 0..5)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// Conditions that are mostly well formed, over fields that [`any_json`] mostly has.
pub(crate) fn any_condition() -> impl Strategy<Value = Value> {
    let path = prop_oneof!["[a-c]", "[a-c]\\.[a-c]", "[a-c]\\[[0-2]\\]", "[a-c]\\[\\*\\]", "[a-c]\\[\\*\\]\\.[a-c]"];
    let op = proptest::sample::select(Op::ALL.map(Op::as_str).to_vec());
    let operand = prop_oneof![
        scalar(),
        proptest::collection::vec(scalar(), 0..4).prop_map(Value::from),
        Just(json!([1, 2])),
        any::<bool>().prop_map(Value::from),
    ];
    let test = (path, op, operand).prop_map(|(field, op, value)| json!({ "field": field, "op": op, "value": value }));
    test.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 1..4).prop_map(|nodes| json!({ "all": nodes })),
            proptest::collection::vec(inner.clone(), 1..4).prop_map(|nodes| json!({ "any": nodes })),
            inner.prop_map(|node| json!({ "not": node })),
        ]
    })
}

proptest! {
    #[test]
    fn explanation_and_evaluation_agree(tree in any_condition(), root in any_json()) {
        if let Ok(condition) = Condition::parse(&tree) {
            let answer = condition.eval(&root);
            prop_assert_eq!(condition.explain(&root).result, answer);
            let opposite = Condition::parse(&json!({ "not": tree }));
            if let Ok(opposite) = opposite {
                prop_assert_eq!(opposite.eval(&root), !answer);
            }
        }
    }

    #[test]
    fn any_json_is_read_or_refused_with_reasons(tree in any_json()) {
        if let Err(problems) = Condition::parse(&tree) {
            prop_assert!(!problems.is_empty());
            for problem in problems {
                prop_assert!(tree.pointer(&problem.path).is_some(), "{} leads nowhere", problem.path);
            }
        }
    }

    #[test]
    fn a_list_holds_what_equals_one_of_its_values(list in proptest::collection::vec(scalar(), 0..40), actual in scalar()) {
        let operand = Value::from(list.clone());
        let expected = list.iter().any(|item| compare::equal(item, &actual));
        let root = json!({ "a": actual });
        prop_assert_eq!(holds("a", "in", &operand, &root), expected);
        prop_assert_eq!(holds("a", "not_in", &operand, &root), !expected);
    }

    #[test]
    fn any_text_is_a_path_or_refused(text in "\\PC{0,40}|[a\\[\\]\\.\\*\"0-9]{0,12}") {
        if let Ok(path) = FieldPath::parse(&text) {
            prop_assert_eq!(path.as_str(), text);
            let _ = path.resolve(&json!({ "a": [{ "a": 1 }] }));
        }
    }

    #[test]
    fn order_is_total_over_finite_numbers(a in scalar(), b in scalar(), c in scalar()) {
        if let (Value::Number(a), Value::Number(b), Value::Number(c)) = (a, b, c) {
            let order = |x, y| compare::compare_numbers(x, y).unwrap();
            prop_assert_eq!(order(&a, &b), order(&b, &a).reverse());
            prop_assert!(order(&a, &a).is_eq());
            if order(&a, &b).is_le() && order(&b, &c).is_le() {
                prop_assert!(order(&a, &c).is_le());
            }
        }
    }

    #[test]
    fn whole_numbers_compare_like_integers(a: i64, b: u64) {
        let order = compare::compare_numbers(&a.into(), &b.into()).unwrap();
        prop_assert_eq!(order, i128::from(a).cmp(&i128::from(b)));
        // A float's exact value as an integer, beyond 2⁵³ too.
        #[expect(clippy::cast_precision_loss, reason = "the rounded value is what is compared")]
        let float = b as f64;
        #[expect(clippy::cast_possible_truncation, reason = "a u64 as float fits an i128")]
        let exact = float as i128;
        let order = compare::compare_numbers(&a.into(), &serde_json::Number::from_f64(float).unwrap()).unwrap();
        prop_assert_eq!(order, i128::from(a).cmp(&exact));
    }
}
