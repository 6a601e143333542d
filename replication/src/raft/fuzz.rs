//! This backend's messages, for [`crate::fuzz`].

use std::collections::BTreeSet;

use openraft::raft::{
    AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse, VoteRequest,
    VoteResponse,
};

use super::founding::Report;
use super::joining;
use super::network::{decode_append, decode_snapshot, encode_append, encode_snapshot};
use super::notice::Notice;
use super::outside::Wanted;
use super::types::TypeConfig;
use crate::fuzz::{again, stable};
use crate::store::NodeId;
use crate::transport::{Frame, Refusal};
use crate::wire;

pub(crate) fn request(frame: &Frame) -> Result<(), Refusal> {
    match frame.tag {
        wire::RAFT_APPEND => stable(frame, |frame| decode_append(frame).map(|rpc| encode_append(&rpc))),
        wire::RAFT_SNAPSHOT => stable(frame, |frame| {
            decode_snapshot(frame)
                .map(|(vote, snapshot)| encode_snapshot(&vote, &snapshot.meta, &snapshot.snapshot))
        }),
        wire::RAFT_VOTE | wire::RAFT_PRE_VOTE => stable(frame, again::<VoteRequest<TypeConfig>>),
        wire::RAFT_TRANSFER => stable(frame, again::<TransferLeaderRequest<TypeConfig>>),
        wire::FOUND => stable(frame, again::<BTreeSet<NodeId>>),
        wire::NOTICE => stable(frame, again::<Notice>),
        wire::READ => stable(frame, again::<Wanted>),
        wire::MEMBERSHIP => stable(frame, again::<joining::Request>),
        unknown => Err(Refusal(format!("unknown message {unknown}"))),
    }
}

pub(crate) fn response(frame: &Frame) -> Result<(), Refusal> {
    match frame.tag {
        wire::RAFT_APPEND => stable(frame, again::<AppendEntriesResponse<TypeConfig>>),
        wire::RAFT_SNAPSHOT => stable(frame, again::<SnapshotResponse<TypeConfig>>),
        wire::RAFT_VOTE | wire::RAFT_PRE_VOTE => stable(frame, again::<VoteResponse<TypeConfig>>),
        wire::RAFT_TRANSFER => stable(frame, again::<TransferLeaderResponse<TypeConfig>>),
        wire::REPORT => stable(frame, again::<Report>),
        wire::MEMBERSHIP => stable(frame, again::<joining::Answer>),
        unknown => Err(Refusal(format!("nothing is read of an answer to message {unknown}"))),
    }
}
