//! This backend's messages, for [`crate::fuzz`].

use super::network::{Beat, Order, Roster, Standing};
use super::node::Wanted;
use crate::error::StoreError;
use crate::fuzz::{again, stable};
use crate::ledger::Record;
use crate::members::Place;
use crate::store::Epoch;
use crate::transport::{Frame, Refusal};
use crate::wire;

pub(crate) fn request(frame: &Frame) -> Result<(), Refusal> {
    match frame.tag {
        wire::BACKUP_HEARTBEAT => stable(frame, again::<Beat>),
        wire::BACKUP_MEMBERS => stable(frame, again::<Roster>),
        wire::BACKUP_STORE => stable(frame, again::<Order>),
        wire::BACKUP_HAND_OVER => stable(frame, again::<Epoch>),
        wire::BACKUP_READ => stable(frame, again::<Wanted>),
        unknown => Err(Refusal(format!("unknown message {unknown}"))),
    }
}

pub(crate) fn response(frame: &Frame) -> Result<(), Refusal> {
    match frame.tag {
        wire::BACKUP_HEARTBEAT => stable(frame, again::<Beat>),
        wire::BACKUP_MEMBERS => stable(frame, again::<Result<Place, StoreError>>),
        wire::BACKUP_STORE => stable(frame, again::<Result<(), StoreError>>),
        wire::BACKUP_ENQUIRE => stable(frame, |frame| {
            let records: Vec<Record> = wire::decode(&frame.body.concat())?;
            Ok(Frame { body: vec![wire::encode(&records)], ..again::<Standing>(frame)? })
        }),
        unknown => Err(Refusal(format!("nothing is read of an answer to message {unknown}"))),
    }
}
