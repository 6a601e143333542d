//! A new cluster from one survivor's storage, under the backends without a log.

use replication::{Backend, Storage, Survivor};

use super::nodes::{Group, backup, fresh_disks, goes_on, gossip, local};

/// Writes rounds, loses everybody but the one who has most, and begins anew from it.
async fn goes_on_from_one(backend: Backend) {
    let group = Group::start(&backend, 1, fresh_disks()).await;
    let mut acknowledged = 0;
    for _ in 0..6 {
        acknowledged = group.write_next().await.unwrap().unwrap().id.round;
    }
    let epoch = group.epoch().await.unwrap();
    let mut disks = group.power_off(1).await;
    let storage = Storage::inline_on(disks.remove(&epoch.node).unwrap()).unwrap();
    let survivor = Survivor::read(&storage).await.unwrap().unwrap();
    assert_eq!(survivor.newest().unwrap().id.round, acknowledged);
    assert_eq!(survivor.position(), (epoch.counter, acknowledged));
    assert!(survivor.lacking().is_empty() && matches!(survivor, Survivor::Holder(_)));
    let mut fresh = fresh_disks();
    for (node, disk) in &fresh {
        let storage = Storage::inline_on(disk.clone()).unwrap();
        survivor.seed(&storage, *node).await.unwrap();
        let again = survivor.seed(&storage, *node).await.unwrap_err();
        assert!(again.to_string().contains("should be empty"), "{again}");
        storage.close().await;
    }
    for life in 2..5 {
        let group = Group::start(&backend, life, fresh).await;
        let later = group.epoch().await.unwrap();
        assert!(later.counter > epoch.counter, "{later} after {epoch}");
        goes_on(&group, acknowledged, "from one survivor").await;
        acknowledged += 1;
        fresh = group.power_off(life).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_cluster_goes_on_from_one_holder() {
    for backend in [local(), backup(), gossip()] {
        goes_on_from_one(backend).await;
    }
}

#[tokio::test]
async fn an_empty_storage_is_no_survivor() {
    let storage = Storage::inline_on(super::disk::Disk::default()).unwrap();
    assert!(Survivor::read(&storage).await.unwrap().is_none());
}
