//! The folder of a run's stores: a file per node, and `cluster.json`, which says whose they are.
//!
//! A controller locks `cluster.json` as long as it runs, so that two runs never share the files; each node locks its own
//! file besides. What is in the nodes' files is not known here.

use std::fs::{self, File, TryLockError};
use std::hash::{BuildHasher as _, RandomState};
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::exit::Usage;
use crate::plan::{Backend, DiskStore, Durability, Plan, Trial};

/// The file that says whose stores a folder holds.
pub const CLUSTER_FILE: &str = "cluster.json";
/// Version of its layout.
const LAYOUT: u32 = 1;
/// The remedy for most of what can be wrong with a folder.
const OTHER_FOLDER: &str = "name another folder";

/// Contents of `cluster.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    layout: u32,
    /// A name that no other cluster has.
    pub cluster: String,
    /// Of which backend the stores are.
    pub backend: Backend,
    /// How many nodes the cluster has.
    pub nodes: u64,
    /// Whether nodes joined or left: then no other run can tell from the files who belongs to the cluster.
    #[serde(default)]
    pub members_change: bool,
    /// The cluster of whose survivor it was made, and the survivor.
    pub recovered_from: Option<(String, u64)>,
}

impl Label {
    /// Of a cluster with a new name.
    #[must_use]
    pub fn new(backend: Backend, nodes: u64) -> Self {
        let cluster = format!("{:016x}", RandomState::new().hash_one("cluster"));
        Self { layout: LAYOUT, cluster, backend, nodes, members_change: false, recovered_from: None }
    }

    /// The label of the stores in `dir`; none if there is none.
    ///
    /// # Errors
    /// A label that cannot be read, or is of another version.
    pub fn read(dir: &Path) -> Result<Option<Self>, Usage> {
        let refuse = |wrong: String| Usage::option("--store", dir.display(), wrong, OTHER_FOLDER);
        let text = match fs::read(dir.join(CLUSTER_FILE)) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(refuse(format!("{CLUSTER_FILE} cannot be read ({error})"))),
        };
        let label: Self = serde_json::from_slice(&text)
            .map_err(|error| refuse(format!("{CLUSTER_FILE} makes no sense ({error})")))?;
        if label.layout != LAYOUT {
            return Err(refuse(format!("{CLUSTER_FILE} has layout {}, not {LAYOUT}", label.layout)));
        }
        Ok(Some(label))
    }

    /// Writes it to `dir`, whole or not at all.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, dir: &Path) -> anyhow::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.as_file().sync_all()?;
        file.persist(dir.join(CLUSTER_FILE))?;
        Ok(())
    }
}

/// A folder of stores that no other controller uses.
#[derive(Debug)]
pub struct Folder {
    disk: DiskStore,
    /// Held, never read.
    #[allow(dead_code, reason = "a lock is of use while it is there")]
    lock: File,
}

impl Folder {
    /// Opens `dir` for a run of `plan`, or makes it. `members_change`: nodes join or leave in it.
    ///
    /// # Errors
    /// As [`check`], or if it cannot be made.
    pub fn open(dir: &Path, plan: &Plan, members_change: bool) -> anyhow::Result<Self> {
        check(dir, plan, members_change)?;
        let failed = || format!("cannot make the folder of the stores, {}", dir.display());
        fs::create_dir_all(dir).with_context(failed)?;
        let dir = fs::canonicalize(dir).with_context(failed)?;
        let label = match Label::read(&dir)? {
            Some(label) => label,
            None => {
                let mut label = Label::new(plan.backend.backend(), plan.founders);
                label.members_change = members_change;
                label.write(&dir).with_context(failed)?;
                label
            }
        };
        let lock = lock(&dir)?;
        Ok(Self { disk: DiskStore { dir, cluster: label.cluster }, lock })
    }

    /// Notes that nodes join or leave from now on.
    ///
    /// # Errors
    /// If it cannot be written, or another controller takes the folder at this moment.
    pub fn members_change(&mut self) -> anyhow::Result<()> {
        let dir = &self.disk.dir;
        if let Some(mut label) = Label::read(dir)?.filter(|label| !label.members_change) {
            label.members_change = true;
            label.write(dir).with_context(|| format!("cannot write {CLUSTER_FILE}"))?;
            // The lock is on the file that was replaced.
            self.lock = lock(dir)?;
        }
        Ok(())
    }

    /// What nodes are told of it.
    #[must_use]
    pub fn disk(&self) -> &DiskStore {
        &self.disk
    }
}

/// Opens the folder of the stores of `trial`, by default `store` in the folder of its results, and has its plan name it; none:
/// they are in memory.
///
/// # Errors
/// As [`Folder::open`].
pub fn open_stores(trial: &mut Trial, results: &Path) -> anyhow::Result<Option<Folder>> {
    let Durability::Disk { dir } = &trial.durability else { return Ok(None) };
    let dir = dir.clone().unwrap_or_else(|| results.join("store"));
    let folder = Folder::open(&dir, &trial.plan, !trial.changes.is_empty())?;
    trial.plan.disk = Some(folder.disk().clone());
    Ok(Some(folder))
}

/// Locks the label of `dir` against other controllers, until the file is dropped.
///
/// # Errors
/// If another one has it, or there is no label.
pub fn lock(dir: &Path) -> Result<File, Usage> {
    let refuse = |wrong: String, remedy: &str| Usage::option("--store", dir.display(), wrong, remedy);
    let file = File::open(dir.join(CLUSTER_FILE))
        .map_err(|error| refuse(format!("{CLUSTER_FILE} cannot be opened ({error})"), OTHER_FOLDER))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(refuse("a run that has not ended uses it".into(), "end that run, or name another folder"))
        }
        Err(TryLockError::Error(error)) => {
            Err(refuse(format!("it cannot be locked ({error})"), OTHER_FOLDER))
        }
    }
}

/// Checks that a run of `plan` can keep its stores in `dir`. Makes nothing.
///
/// # Errors
/// Stores of another cluster, an incomplete set of them, or a folder in use.
pub fn check(dir: &Path, plan: &Plan, members_change: bool) -> Result<(), Usage> {
    let refuse = |wrong: String, remedy: &str| Err(Usage::option("--store", dir.display(), wrong, remedy));
    let nodes = plan.founders();
    let file = |node: &_| DiskStore { dir: dir.into(), cluster: String::new() }.file(*node);
    let missing: Vec<_> = nodes.iter().filter(|node| !file(node).exists()).collect();
    let none = missing.len() == nodes.len();
    let Some(label) = Label::read(dir)? else {
        return if none {
            Ok(())
        } else {
            refuse(format!("it holds stores, but no {CLUSTER_FILE} says whose"), OTHER_FOLDER)
        };
    };
    if label.members_change || members_change {
        let wrong = "which nodes belong to the cluster cannot be told from it once nodes join or leave";
        return refuse(wrong.into(), OTHER_FOLDER);
    }
    let (backend, count) = (plan.backend.backend(), nodes.len() as u64);
    if label.backend != backend {
        let remedy = format!("use --backend {}, or name another folder", label.backend);
        return refuse(format!("it holds stores of {}, not of {backend}", label.backend), &remedy);
    }
    if label.nodes != count {
        let remedy = format!("use --nodes {}, or name another folder", label.nodes);
        return refuse(format!("it holds the stores of {} nodes, not of {count}", label.nodes), &remedy);
    }
    if let (Some(node), false) = (missing.first(), none) {
        let wrong = format!(
            "the store of node {node} is missing: a node that lost its votes must not come back under its id"
        );
        return refuse(wrong, "put the file back, or see `harness recover`");
    }
    lock(dir).map(drop)
}

#[cfg(test)]
mod tests {
    use replication::NodeId;

    use super::*;
    use crate::plan::tests::plan;

    fn refused(dir: &Path, plan: &Plan) -> String {
        check(dir, plan, false).unwrap_err().to_string()
    }

    #[test]
    fn a_folder_keeps_its_name_and_serves_one_controller_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("a/store");
        assert_eq!(check(&dir, &plan(3), false), Ok(()));
        assert!(!dir.exists(), "looking makes nothing");
        let first = Folder::open(&dir, &plan(3), false).unwrap();
        let cluster = first.disk().cluster.clone();
        assert!(refused(&dir, &plan(3)).contains("a run that has not ended uses it; end that run"));
        drop(first);
        assert_eq!(Folder::open(&dir, &plan(3), false).unwrap().disk().cluster, cluster);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(Folder::open(other.path(), &plan(3), false).unwrap().disk().cluster, cluster);
    }

    #[test]
    fn a_folder_whose_nodes_came_and_went_is_of_no_use_to_another_run() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = Folder::open(dir.path(), &plan(3), false).unwrap();
        folder.members_change().unwrap();
        assert!(lock(dir.path()).is_err(), "it is still in use");
        drop(folder);
        assert!(refused(dir.path(), &plan(3)).contains("once nodes join or leave; name another folder"));
    }

    #[test]
    fn a_label_of_another_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(Folder::open(dir.path(), &plan(3), false).unwrap());
        let label = dir.path().join(CLUSTER_FILE);
        let text = fs::read_to_string(&label).unwrap();
        fs::write(&label, text.replacen("\"layout\": 1", "\"layout\": 9", 1)).unwrap();
        assert!(refused(dir.path(), &plan(3)).contains("cluster.json has layout 9, not 1"));
    }

    #[test]
    fn stores_of_other_clusters_and_missing_ones_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (dir, plan3) = (dir.path(), plan(3));
        let disk = Folder::open(dir, &plan3, false).unwrap().disk().clone();
        for node in [1, 2] {
            fs::write(disk.file(NodeId(node)), "").unwrap();
        }
        assert!(refused(dir, &plan3).contains("the store of node 3 is missing"), "{}", refused(dir, &plan3));
        fs::write(disk.file(NodeId(3)), "").unwrap();
        assert_eq!(check(dir, &plan3, false), Ok(()));
        let changing = check(dir, &plan3, true).unwrap_err().to_string();
        assert!(changing.contains("cannot be told from it once nodes join or leave"), "{changing}");
        assert!(refused(dir, &plan(4)).contains("stores of 3 nodes, not of 4; use --nodes 3"));
        let mut subset = plan(3);
        subset.backend.scheme = crate::plan::Scheme::RaftSubset { voters: 3, voter_grace_ns: 1 };
        assert!(refused(dir, &subset).contains("stores of raft, not of raft-subset"));
        fs::write(dir.join(CLUSTER_FILE), "{}").unwrap();
        assert!(refused(dir, &plan3).contains("cluster.json makes no sense"));
        fs::remove_file(dir.join(CLUSTER_FILE)).unwrap();
        assert!(refused(dir, &plan3).contains("no cluster.json says whose"));
    }
}
