//! Bindings of `bulkhead:plugin@0.1.0`, the newest contract; a later one converts to and from its predecessor in a file of its own.

wasmtime::component::bindgen!({
    path: "../../wit/0.1.0",
    inline: "
        package bulkhead:host;
        world host {
            import bulkhead:plugin/secrets@0.1.0;
            import wasi:logging/logging@0.1.0-draft;
            import wasi:config/store@0.2.0-rc.1;
            export bulkhead:plugin/action@0.1.0;
            export bulkhead:plugin/channel@0.1.0;
            export bulkhead:plugin/factor@0.1.0;
        }
    ",
    world: "bulkhead:host/host",
    imports: {
        "bulkhead:plugin/secrets@0.1.0": async | trappable,
        default: trappable,
    },
    exports: { default: async },
});

/// Contract versions that the host serves, as manifests name them.
pub(crate) const CONTRACTS: [&str; 1] = ["bulkhead:plugin@0.1"];
