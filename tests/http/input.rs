//! Bad input: each is answered with what is wrong and where, and changes nothing.

use axum::body::Body;

use crate::support::ask;

on_both! {
    async fn bodies_that_are_no_json_are_refused(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let post = |kind: &str, body: Vec<u8>| ask("POST", tenant.at("api-keys")).key(&tenant.key).bytes(kind, body);
        for (body, code) in [
            (b"".to_vec(), None),
            (b"{".to_vec(), Some("syntax")),
            (b"{} {}".to_vec(), Some("syntax")),
            (b"{\"name\": \"\xff\"}".to_vec(), Some("syntax")),
            (b"\xef\xbb\xbf{}".to_vec(), Some("syntax")),
            (format!("{{\"name\": {}{}}}", "[".repeat(200), "]".repeat(200)).into_bytes(), Some("too-deep")),
        ] {
            let answer = server.send(post("application/json", body)).await;
            assert_eq!(answer.problem(400), "invalid-json");
            if let Some(code) = code {
                assert_eq!(answer.error(400).1, code);
            }
        }
        for kind in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", "multipart/form-data; boundary=x"] {
            assert_eq!(server.send(post(kind, b"{}".to_vec())).await.problem(415), "unsupported-media-type");
        }
        let untyped = ask("POST", tenant.at("api-keys")).key(&tenant.key);
        assert_eq!(server.send(untyped).await.problem(415), "unsupported-media-type");
        let typed = post("application/json; charset=utf-8", br#"{"name": "x", "permissions": ["org.read"]}"#.to_vec());
        assert_eq!(server.send(typed).await.status.as_u16(), 201);
    }

    async fn what_is_wrong_is_pointed_at(server: TestServer) {
        let tenant = server.tenant("acme").await;
        for (body, path, code) in [
            (r#"{"name": "x", "permissions": ["org.read"], "expires": 3}"#, "/expires", "unknown-field"),
            (r#"{"name": "x", "permissions": ["org.read", "org.reed"]}"#, "/permissions/1", "invalid-value"),
            (r#"{"name": "x", "permissions": "org.read"}"#, "/permissions", "wrong-type"),
            (r#"{"name": null, "permissions": ["org.read"]}"#, "/name", "wrong-type"),
            (r#"{"permissions": ["org.read"]}"#, "", "missing-field"),
            (r#"{"name": "x", "name": "y", "permissions": ["org.read"]}"#, "", "repeated-key"),
            (r#"["x", ["org.read"]]"#, "", "wrong-type"),
        ] {
            let ask = ask("POST", tenant.at("api-keys")).key(&tenant.key).bytes("application/json", body);
            let answer = server.send(ask).await;
            assert_eq!(answer.problem(422), "invalid-body", "{body}");
            assert_eq!(answer.error(422), (path.to_owned(), code.to_owned()), "{body}");
        }
    }

    async fn bodies_have_an_end_whether_announced_or_not(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let large = format!("{{\"name\": \"{}\"}}", "x".repeat(1024 * 1024));
        let announced = ask("POST", tenant.at("api-keys")).key(&tenant.key).header("content-length", "10485760");
        let streamed = Body::from_stream(futures(&large));
        for request in [announced.bytes("application/json", "{}"), ask("POST", tenant.at("api-keys")).key(&tenant.key).bytes("application/json", streamed)] {
            let answer = server.send(request).await;
            assert_eq!(answer.problem(413), "too-large");
            assert!(answer.text().contains("1048576"), "the limit is named: {}", answer.text());
        }
        let package = ask("POST", tenant.at("plugins")).key(&tenant.key).header("content-length", "33554433");
        let answer = server.send(package.bytes("application/wasm", "x")).await;
        assert_eq!(answer.problem(413), "too-large");
        assert!(answer.text().contains("33554432"), "{}", answer.text());
    }

    async fn ids_of_another_form_name_nothing(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let run = "run_01h455vb4pex5vsknk084sn02q";
        for path in ["runs/x", "runs/wf_01h455vb4pex5vsknk084sn02q", "runs/%00", "runs/RUN_01H455VB4PEX5VSKNK084SN02Q", "calls/1",
            "workflows/1/versions", "installations/x/grants", "plugins/acme%2Fecho"]
        {
            assert_eq!(server.get(&tenant, path).await.problem(404), "not-found", "{path}");
        }
        assert_eq!(server.get(&tenant, &format!("runs/{run}")).await.problem(404), "not-found");
    }

    async fn a_permission_is_asked_before_the_body_is_read(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let key = server.key(&tenant, &[bulkhead_model::permission::Permission::OrgRead]).await;
        let large = ask("POST", tenant.at("plugins")).key(&key).bytes("application/wasm", vec![0; 1024]).header("content-length", "99999999");
        let answer = server.send(large).await;
        assert_eq!(answer.problem(403), "forbidden");
        assert!(answer.text().contains("plugins.upload"), "the permission is named: {}", answer.text());
    }
}

/// A body in pieces, without a length.
fn futures(text: &str) -> impl futures_util::Stream<Item = Result<Vec<u8>, std::convert::Infallible>> + use<> {
    futures_util::stream::iter(text.as_bytes().chunks(64 * 1024).map(|piece| Ok(piece.to_vec())).collect::<Vec<_>>())
}
