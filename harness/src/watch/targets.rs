//! Whose metrics are asked for: the nodes of a run under way, by its results folder, or addresses that were named.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use replication::NodeId;

use crate::exit::Usage;
use crate::plan::PlacementKind;
use crate::record::{Manifest, Outcome};

/// One node to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where its metrics are.
    pub at: SocketAddr,
    /// The node, if that is known before it answers.
    pub node: Option<NodeId>,
    /// It may not be there yet: until it has answered once it is no row.
    pub may_come: bool,
}

/// What is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Targets {
    /// The nodes.
    pub all: Vec<Target>,
    /// What a person should know who gets no answers.
    pub hint: Option<String>,
}

impl Targets {
    /// The nodes at these addresses.
    #[must_use]
    pub fn at(addresses: &[SocketAddr]) -> Self {
        let target = |at: &SocketAddr| Target { at: *at, node: None, may_come: false };
        Self { all: addresses.iter().map(target).collect(), hint: None }
    }

    /// The nodes of the run whose results folder `dir` is, or of the newest one in it.
    ///
    /// # Errors
    /// By its name, with a remedy.
    pub fn of_run(dir: &Path) -> Result<Self, Usage> {
        let refuse = |wrong: String, remedy: &str| Usage(format!("{}: {wrong}; {remedy}", dir.display()));
        let another = "name the results folder of a run under way, or addresses with --metrics";
        let folder = if dir.join("manifest.json").exists() {
            dir.to_owned()
        } else {
            newest(dir).ok_or_else(|| refuse("no results folder, and there is none in it".into(), another))?
        };
        let text = fs::read(folder.join("manifest.json"))
            .map_err(|error| refuse(format!("manifest.json cannot be read ({error})"), another))?;
        let manifest: Manifest = serde_json::from_slice(&text)
            .map_err(|error| refuse(format!("its manifest makes no sense ({error})"), another))?;
        if manifest.outcome != Outcome::Running {
            let folder = folder.file_name().unwrap_or_default().display();
            return Err(refuse(format!("the run {folder} is over ({})", manifest.message), another));
        }
        Self::of_manifest(&manifest)
            .ok_or_else(|| refuse("its nodes show no metrics".into(), "start the run with --metrics 9464"))
    }

    fn of_manifest(manifest: &Manifest) -> Option<Self> {
        let plan = &manifest.plan;
        let founders = plan.founders();
        let target = |(node, at): (NodeId, SocketAddr)| Target {
            at: reachable(at),
            node: Some(node),
            may_come: !founders.contains(&node),
        };
        let all = plan.metrics?.all(plan).into_iter().map(target).collect();
        let hint = (plan.placement == PlacementKind::Netns).then(|| {
            "the nodes are in network namespaces: run this in one of them (nsenter --net --target PID harness watch ...)"
                .to_owned()
        });
        Some(Self { all, hint })
    }
}

/// Where to reach whoever listens at `at`: at every address is at this machine's own, too.
fn reachable(at: SocketAddr) -> SocketAddr {
    let ip = match at.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, at.port())
}

/// The newest results folder in `dir`: their names begin with the time.
fn newest(dir: &Path) -> Option<PathBuf> {
    let folders = fs::read_dir(dir).ok()?.filter_map(Result::ok).map(|entry| entry.path());
    folders.filter(|folder| folder.join("manifest.json").exists()).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_listens_everywhere_is_reached_here() {
        let at = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(
            (at("0.0.0.0:9"), at("[::]:9"), at("10.0.0.1:9")),
            ("127.0.0.1:9".into(), "[::1]:9".into(), "10.0.0.1:9".into())
        );
    }

    #[test]
    fn a_folder_without_a_run_is_refused_with_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |dir: &Path| Targets::of_run(dir).unwrap_err().to_string();
        assert!(
            refused(dir.path())
                .contains("no results folder, and there is none in it; name the results folder")
        );
        let run = dir.path().join("20260101T000000Z-host");
        fs::create_dir(&run).unwrap();
        fs::write(run.join("manifest.json"), "{}").unwrap();
        for dir in [dir.path(), run.as_path()] {
            assert!(refused(dir).contains("its manifest makes no sense"), "{}", refused(dir));
        }
    }
}
