//! Rate limits of the real server, through a restart, and what the operator sees of blocks.

use bulkhead_test_support::http_sink::Sink;
use serde_json::json;

use crate::on_both;
use crate::server::Place;

on_both! {
    fn what_was_counted_outlives_a_restart(place: Place) {
        let sink = Sink::start();
        let settings = [("BULKHEAD_LIMITS__EXPORTS_PER_HOUR", "1".to_owned())];
        let server = place.start_with(&sink, &settings);
        let export = "audit/bundles/1000000";
        assert_ne!(server.api.get(export).status, 429);
        let refused = server.api.get(export);
        assert_eq!((refused.status, refused.body["violated-policies"].clone()), (429, json!(["export"])));
        assert_eq!(server.stop(), Some(0));
        let server = place.start_with(&sink, &settings);
        assert_eq!(server.api.get(export).status, 429, "an hour is not over");
        assert_eq!(server.stop(), Some(0));
        assert_eq!(place.operate(&["admin", "blocks", "list", "--json"]).unwrap(), json!([]));
        assert!(place.operate(&["admin", "blocks", "lift", "198.51.100.7"]).unwrap_err().contains("block"));
    }
}
