//! What an installation may do at a grant version, computed once and kept until the version rises or a grant ends.

use std::sync::Arc;

use bulkhead_model::call::Refusal;
use bulkhead_model::grant::{Ceiling, EffectiveGrants, Layers};
use bulkhead_model::manifest::CapabilityAsk;
use bulkhead_model::time::Timestamp;
use bulkhead_store::installation::Installation;
use bulkhead_store::plugin::Plugin;

use crate::installation::is_missing;

pub(crate) struct Rights {
    pub(crate) effective: Arc<EffectiveGrants>,
    /// Required permissions of which nothing is granted: no guest code runs without them.
    pub(crate) missing: Vec<Refusal>,
}

impl Rights {
    pub(crate) fn compute(plugin: &Plugin, installation: &Installation, ceiling: &Ceiling, now: Timestamp) -> Self {
        let layers = Layers::of(&plugin.manifest, &installation.grants, ceiling, &installation.settings, now);
        let missing = layers.asks.iter().filter(|view| is_missing(view, &installation.settings));
        let refusal = |ask: &CapabilityAsk, sentence: &str| Refusal {
            kind: ask.kind().to_owned(),
            target: match ask {
                CapabilityAsk::Http { .. } => sentence.to_owned(),
                CapabilityAsk::Secret { name, .. } => name.to_string(),
            },
            reason: "the plugin requires this permission and it is not granted".to_owned(),
        };
        let missing = missing.map(|view| refusal(&view.ask.capability, &view.consent.sentence)).collect();
        Self { missing, effective: Arc::new(layers.effective) }
    }

    /// Whether a grant behind them has ended by `now`.
    pub(crate) fn has_ended(&self, now: Timestamp) -> bool {
        self.effective.expires_at().is_some_and(|at| at <= now)
    }
}
