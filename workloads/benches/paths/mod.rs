//! The paths of this crate that are measured both by time and by instructions.

#![allow(dead_code, reason = "each bench uses a part")]

use replication::Checkpoint;
use replication::transport::Frame;
use workloads::federated::Average;
use workloads::federated::model::PARAMETERS;
use workloads::keyvalue::journal::Batch;
use workloads::keyvalue::message::{Command, Effect, Request, Response, decode, encode};
use workloads::keyvalue::replica::Replica;

use crate::inputs::epoch;

/// FedAvg of parameters with 1,000 examples each.
pub(crate) fn average(uploads: &[Vec<f32>]) -> Vec<f32> {
    let mut average = Average::new(PARAMETERS);
    for upload in uploads {
        average.add(upload, 1_000).expect("finite and small");
    }
    average.finish().expect("not empty")
}

/// A batch of writes from its clients and back: requests encoded and decoded, the batch as a checkpoint and read from it, applied,
/// and the answers encoded and decoded. Returns how many were done.
pub(crate) fn replicate_writes(replica: &mut Replica, requests: &[Request]) -> usize {
    let received: Vec<Frame> = requests.iter().map(encode).collect();
    let commands: Vec<Command> = received
        .into_iter()
        .filter_map(|frame| match decode(frame) {
            Ok(Request::Write(command)) => Some(command),
            _ => None,
        })
        .collect();
    let (batch, number) = replica.next(commands);
    let checkpoint = batch.to_checkpoint(epoch(), number);
    let batch = Batch::of(&checkpoint).expect("a batch");
    let effects = replica.apply(checkpoint.id(), checkpoint.parameters().len() as u64, &batch);
    let index = replica.machine().index();
    let answers = effects.into_iter().map(|effect| encode(&Response::Written { effect, index }));
    let done = |frame| matches!(decode(frame), Ok(Response::Written { effect: Effect::Done { .. }, .. }));
    answers.filter(|frame| done(frame.clone())).count()
}

/// Reads from their clients and back, the confirmation left out. Returns how many found a value.
pub(crate) fn answer_reads(replica: &Replica, requests: &[Request]) -> usize {
    let machine = replica.machine();
    let answer = |request: &Request| {
        let Ok(Request::Read { key, .. }) = decode(encode(request)) else { return None };
        let value = machine.get(&key).cloned();
        decode(encode(&Response::Value { value, index: machine.index() })).ok()
    };
    requests
        .iter()
        .map(answer)
        .filter(|answer| matches!(answer, Some(Response::Value { value: Some(_), .. })))
        .count()
}

/// The whole state as a checkpoint.
pub(crate) fn snapshot(replica: &Replica) -> Checkpoint {
    replica.snapshot().to_checkpoint(epoch())
}
