//! The experiments that are part of the program. They are files like any other: `experiments/` in the source tree.

/// Names and texts, in the order in which they are listed.
pub const SHIPPED: [(&str, &str); 14] = [
    ("smoke", include_str!("../../../experiments/smoke.toml")),
    ("fig3", include_str!("../../../experiments/fig3.toml")),
    ("fig4", include_str!("../../../experiments/fig4.toml")),
    ("matched", include_str!("../../../experiments/matched.toml")),
    ("size", include_str!("../../../experiments/size.toml")),
    ("network", include_str!("../../../experiments/network.toml")),
    ("churn", include_str!("../../../experiments/churn.toml")),
    ("consecutive", include_str!("../../../experiments/consecutive.toml")),
    ("subset-k", include_str!("../../../experiments/subset-k.toml")),
    ("scale", include_str!("../../../experiments/scale.toml")),
    ("kv-grid", include_str!("../../../experiments/kv-grid.toml")),
    ("kv-peers", include_str!("../../../experiments/kv-peers.toml")),
    ("leaderboard", include_str!("../../../experiments/leaderboard.toml")),
    ("capture-overhead", include_str!("../../../experiments/capture-overhead.toml")),
];

/// The text of a shipped experiment.
#[must_use]
pub fn text_of(name: &str) -> Option<&'static str> {
    SHIPPED.iter().find(|(shipped, _)| *shipped == name).map(|(_, text)| *text)
}
