//! Answers the requests of peers, and checks who may say what.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;

use super::catalogue::Learned;
use super::core::Core;
use super::messages::{Candidacy, Convene, HandOver, Have, Heard, Promised, Rumour, Yield};
use super::network::Bridge;
use crate::event::StoreEvent;
use crate::store::{Epoch, NodeId};
use crate::transport::{Frame, Handler, Refusal};
use crate::wire;

pub(super) struct Inbox {
    pub(super) core: Arc<Core>,
    pub(super) bridge: Bridge,
}

#[async_trait]
impl Handler for Inbox {
    async fn handle(&self, from: NodeId, request: Frame) -> Result<Frame, Refusal> {
        match request.tag {
            wire::GOSSIP_MESSAGE => self.bridge.on_message(from, request).await,
            wire::GOSSIP_RUMOUR => self.on_rumour(from, wire::decode(&request.head)?),
            wire::GOSSIP_HAVE => self.on_have(from, wire::decode(&request.head)?),
            wire::GOSSIP_PULL => self.core.on_pull(from, &request),
            wire::GOSSIP_DESCRIBE => self.core.on_describe(&request),
            wire::GOSSIP_PROMISE => self.on_candidacy(from, wire::decode(&request.head)?).await,
            wire::GOSSIP_CLAIM => self.on_claim(from, wire::decode(&request.head)?),
            wire::GOSSIP_HAND_OVER => self.on_hand_over(from, wire::decode(&request.head)?),
            wire::GOSSIP_YIELD => self.on_yield(from, wire::decode(&request.head)?),
            wire::GOSSIP_MEMBERS => {
                let convene: Convene = wire::decode(&request.head)?;
                self.speaks(from, convene.epoch)?;
                self.core.on_convene(convene).await
            }
            wire::MEMBERSHIP => {
                let answer = self.core.on_membership(from, wire::decode(&request.head)?).await;
                Ok(Frame::new(0, wire::encode(&answer)))
            }
            tag => Err(Refusal(format!("a message of the unknown kind {tag}"))),
        }
    }
}

impl Inbox {
    fn refuse(&self, from: NodeId, reason: &str) -> Refusal {
        self.core.observer.observe(StoreEvent::Refused { from, reason: reason.into() });
        Refusal(format!("node {from}: {reason}"))
    }

    /// An epoch is spoken of by its own node.
    fn speaks(&self, from: NodeId, epoch: Epoch) -> Result<(), Refusal> {
        if from == epoch.node {
            return Ok(());
        }
        Err(self.refuse(from, &format!("it may not speak as node {}", epoch.node)))
    }

    fn on_rumour(&self, from: NodeId, rumour: Rumour) -> Result<Frame, Refusal> {
        let announced = rumour.announced;
        let fenced_by = self.core.state().office.fences(announced.id.epoch);
        let heard = |fenced_by| Ok(Frame::new(0, wire::encode(&Heard { fenced_by })));
        if fenced_by.is_some() {
            return heard(fenced_by);
        }
        match self.core.learn(announced, rumour.metadata.clone(), None) {
            Learned::New(_) => {
                let told = BTreeSet::from([from, announced.writer(), self.core.local]);
                self.core.spread(&rumour, &told);
                self.core.fetch(announced, rumour.carried);
            }
            // The writer may not have been told, since it asks again.
            Learned::Known => {
                if self.core.state().catalogue.find(announced.id).is_some_and(|entry| entry.held) {
                    if from == announced.writer() {
                        self.core.acknowledge(&announced);
                    }
                } else {
                    self.core.fetch(announced, rumour.carried);
                }
            }
            Learned::Refused => {}
        }
        heard(None)
    }

    fn on_have(&self, from: NodeId, have: Have) -> Result<Frame, Refusal> {
        {
            let mut state = self.core.state();
            // What a worker writes does not go through the aggregator, which alone knows the newest configuration.
            if have.id.epoch.node == self.core.local || have.members == state.members.place() {
                state.catalogue.accepted_by(have.id, have.digest, from);
            } else {
                state.catalogue.held_by(have.id, from);
            }
        }
        self.core.changes.announce();
        Ok(Frame::default())
    }

    async fn on_candidacy(
        &self,
        from: NodeId,
        Candidacy { epoch, blessing, members }: Candidacy,
    ) -> Result<Frame, Refusal> {
        self.speaks(from, epoch)?;
        self.core.install(&members);
        let answer = {
            let mut state = self.core.state();
            let knows = members.place() >= state.members.place() && members.contains(from);
            let live = state.live(self.core.local);
            // Only the aggregator itself can know whom it asked.
            let mine = state.office.is_mine();
            let blessing = blessing.filter(|blessing| !mine || state.handing_over == Some(*blessing));
            if knows && state.office.promise(epoch, blessing, &live, tokio::time::Instant::now()) {
                self.core.keep_promises(&state);
                Promised::Granted { holds: state.catalogue.to_announce(super::MAX_ANNOUNCED) }
            } else {
                let (promised, in_force) = (state.office.promised(), state.office.in_force());
                Promised::Refused { promised, in_force, members: state.members.clone() }
            }
        };
        self.core.changes.announce();
        if matches!(answer, Promised::Granted { .. }) {
            self.core.archive.flush_facts().await.map_err(|error| Refusal(error.to_string()))?;
        }
        Ok(Frame::new(0, wire::encode(&answer)))
    }

    fn on_claim(&self, from: NodeId, epoch: Epoch) -> Result<Frame, Refusal> {
        self.speaks(from, epoch)?;
        self.core.follow(epoch);
        // Who claims an office that has ended learns of it.
        self.core.claim(Some(from).filter(|_| self.core.state().office.in_force() > Some(epoch)));
        Ok(Frame::default())
    }

    fn on_hand_over(&self, from: NodeId, HandOver { epoch, members }: HandOver) -> Result<Frame, Refusal> {
        self.speaks(from, epoch)?;
        // The claim of a new aggregator may still be on its way.
        self.core.follow(epoch);
        self.core.install(&members);
        let blessed = self.core.state().office.bless(epoch, tokio::time::Instant::now());
        self.core.changes.announce();
        if blessed { Ok(Frame::default()) } else { Err(Refusal(format!("{epoch} is not in force"))) }
    }

    fn on_yield(&self, from: NodeId, rivals: Yield) -> Result<Frame, Refusal> {
        self.speaks(from, rivals.yields)?;
        self.core.rivals(rivals);
        Ok(Frame::default())
    }
}
