//! Every spelling of every address, from a table.

use bulkhead_model::grant::{Loopback, OriginPattern};

use super::*;

const CORPUS: &str = include_str!("../../../../../tests/runtime/egress/urls.txt");

/// Characters that a line of the table cannot hold.
fn unescape(text: &str) -> String {
    let pairs =
        [("{TAB}", "\t"), ("{LF}", "\n"), ("{CR}", "\r"), ("{SPACE}", " "), ("{NUL}", "\0"), ("{NBSP}", "\u{a0}")];
    pairs.iter().fold(text.to_owned(), |text, (name, character)| text.replace(name, character))
}

#[tokio::test]
async fn every_spelling_is_judged_by_its_address() {
    let mut names = HashMap::new();
    let mut cases = Vec::new();
    for (at, line) in CORPUS.lines().enumerate() {
        let words: Vec<&str> = line.splitn(3, char::is_whitespace).collect();
        let (kind, rest) = (words[0], line[words[0].len()..].trim_start());
        let (first, second) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        match kind {
            "name" => {
                let answer =
                    second.trim().split(',').filter(|text| *text != "-").map(|text| text.parse().unwrap()).collect();
                names.insert(first.to_owned(), vec![answer]);
            }
            "allowed" | "refused" => cases.push((at + 1, kind == "allowed", first, unescape(second.trim_start()))),
            _ => assert!(line.is_empty() || line.starts_with('#'), "line {}: {line}", at + 1),
        }
    }
    assert!(cases.len() >= 150, "the table has shrunk to {}", cases.len());
    let mut wrong = Vec::new();
    for (line, allowed, want, url) in cases {
        let table = Table { names: names.clone(), asked: Mutex::default() };
        let mut bench = Bench::with_table(None, table, |_| {});
        // The widest grant that an admin can write: this very origin, whatever it is.
        let mut widest = all_http();
        widest.origins.extend(Url::parse(&url).ok().and_then(|url| OriginPattern::of_url(&url)));
        bench.context.grants = grants(&[widest], &[]);
        let result = bench.get(&url).await;
        let got = failed(&result);
        let expected = if allowed { ("connect", want) } else { (want, "") };
        let dialled = bench.dialled().join(",");
        if (got.as_str(), dialled.as_str()) != expected {
            wrong.push(format!("line {line}: {url} gave {got} and dialled {dialled:?}, not {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_name_is_looked_up_once_and_the_checked_address_is_dialled() {
    let server = Server::start(Reply::ok("hello")).await;
    let table = Table::default().with("rebind.example.com", &[&[PUBLIC], &["127.0.0.1"]]);
    let bench = Bench::with_table(Some(server.address), table, |_| {});
    let (first, _) = bench.get("http://rebind.example.com/").await;
    assert_eq!(first.expect("the first answer is public").body(), "hello");
    assert_eq!(bench.table.asked.lock().unwrap().len(), 1);
    assert_eq!(bench.dialled(), ["93.184.215.14:80"]);
    // The next request looks up anew, and is judged anew.
    assert_eq!(failed(&bench.get("http://rebind.example.com/").await), "non_public:loopback");
    assert_eq!(bench.dialled(), ["93.184.215.14:80"]);
}

#[tokio::test]
async fn names_are_not_looked_up_without_a_grant() {
    let mut bench = Bench::with(None, |_| {});
    bench.context.grants = grants(&[rule(&["https://api.example.com"], &["POST"], &["/v1"])], &[]);
    for (url, reason) in [
        ("https://stolen-data.attacker.example/", "refused:origin"),
        ("http://api.example.com/v1", "refused:origin"),
        ("https://api.example.com:8443/v1", "refused:origin"),
        ("https://api.example.com/v2", "refused:path"),
        ("https://api.example.com/v1/..%2fadmin", "refused:path"),
    ] {
        let result = bench.send(request(Method::POST, url, &[], "")).await;
        assert_eq!(failed(&result), reason, "{url}");
        assert!(result.0.expect_err("refused").is_refusal());
    }
    assert_eq!(failed(&bench.get("https://api.example.com/v1").await), "refused:method");
    bench.context.grants = Arc::default();
    assert_eq!(failed(&bench.get("https://api.example.com/v1").await), "refused:no_grant");
    assert!(bench.table.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_loopback_pair_needs_the_configuration_and_the_grant() {
    let server = Server::start(Reply::ok("dev")).await;
    let pair: Loopback = server.address.to_string().parse().expect("a pair");
    let url = format!("http://{}/hook", server.address);
    let granted = grants(&[rule(&[&format!("http://{}", server.address)], &["GET"], &["/"])], &[]);
    let dev = |config: &mut EgressConfig| config.allow_loopback = vec![pair.clone()];

    let mut bench = Bench::with(Some(server.address), dev);
    assert_eq!(failed(&bench.get(&url).await), "refused:origin", "a star is no grant for this machine");
    bench.context.grants = Arc::clone(&granted);
    assert_eq!(bench.get(&url).await.0.expect("both agree").body(), "dev");
    // Neither another port nor another spelling of the host is that pair.
    let port = server.address.port();
    for other in [
        format!("http://127.0.0.1:{}/", port ^ 1),
        format!("http://localhost:{port}/"),
        format!("http://127.0.0.2:{port}/"),
    ] {
        let own = Url::parse(&other).ok().and_then(|url| OriginPattern::of_url(&url)).expect("an origin");
        bench.context.grants = grants(&[rule(&[&own.to_string()], &["GET"], &["/"])], &[]);
        assert_eq!(failed(&bench.get(&other).await), "non_public:loopback", "{other}");
    }
    let mut bench = Bench::before(&server);
    bench.context.grants = granted;
    assert_eq!(failed(&bench.get(&url).await), "non_public:loopback", "the default allows nothing of this machine");
}

#[tokio::test]
async fn a_pair_opens_loopback_alone() {
    let table =
        Table::default().with("dev.example.com", &[&["10.0.0.1"]]).with("dev2.example.com", &[&["169.254.169.254"]]);
    let bench = Bench::with_table(None, table, |config| {
        config.allow_loopback = vec!["dev.example.com:80".parse().unwrap(), "dev2.example.com:80".parse().unwrap()];
    });
    assert_eq!(failed(&bench.get("http://dev.example.com/").await), "non_public:private");
    assert_eq!(failed(&bench.get("http://dev2.example.com/").await), "non_public:metadata");
}
