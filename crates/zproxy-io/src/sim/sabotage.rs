//! Deliberate faults of the relay, which an oracle must notice. They act at the seam, so the programs
//! need no code for them.

use std::fmt;

use super::Random;

/// Changes the bytes of a [`crate::Op::Send`].
pub type Edit = Box<dyn FnMut(&mut Vec<u8>)>;

/// What is done wrong in one process, now and then.
pub enum Sabotage {
    /// A relayed byte is lost.
    DropByte,
    /// A relayed byte comes twice.
    RepeatByte,
    /// Bytes of another flow are delivered.
    MixFlows,
    /// A lease never comes back.
    LeakLease,
    /// The end of a direction is not passed on.
    ForgetFin,
    /// A socket is not closed, although its owner is told so.
    ForgetClose,
    /// What is sent is changed.
    Edit(Edit),
}

impl fmt::Debug for Sabotage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DropByte => "DropByte",
            Self::RepeatByte => "RepeatByte",
            Self::MixFlows => "MixFlows",
            Self::LeakLease => "LeakLease",
            Self::ForgetFin => "ForgetFin",
            Self::ForgetClose => "ForgetClose",
            Self::Edit(_) => "Edit",
        })
    }
}

/// The last bytes that were put, and where: what [`Sabotage::MixFlows`] mixes in.
#[derive(Debug, Default)]
pub(super) struct Last {
    sink: Option<usize>,
    bytes: Vec<u8>,
}

impl Sabotage {
    /// Something goes wrong in so many of 1000 cases.
    const CHANCE: u32 = 60;

    /// Bytes on their way into `sink`; gives what is put in their stead.
    pub(super) fn on_put(
        &self,
        bytes: &[u8],
        sink: usize,
        last: &mut Last,
        random: &mut Random,
    ) -> Option<Vec<u8>> {
        let mut wrong = bytes.to_vec();
        let is_now = random.chance(Self::CHANCE);
        match self {
            Self::DropByte if is_now => drop(wrong.remove(random.place(bytes.len()))),
            Self::RepeatByte if is_now => {
                let place = random.place(bytes.len());
                wrong.insert(place, bytes[place]);
            }
            Self::MixFlows => {
                let is_other = last.sink != Some(sink) && !last.bytes.is_empty();
                if is_now && is_other {
                    let count = bytes.len().min(last.bytes.len());
                    wrong[..count].copy_from_slice(&last.bytes[..count]);
                }
                *last = Last { sink: Some(sink), bytes: bytes.to_vec() };
            }
            _ => return None,
        }
        Some(wrong)
    }

    /// Whether a lease that has become empty is lost.
    pub(super) fn leaks(&self, random: &mut Random) -> bool {
        matches!(self, Self::LeakLease) && random.chance(Self::CHANCE)
    }

    /// Whether a FIN is forgotten.
    pub(super) fn forgets_fin(&self, random: &mut Random) -> bool {
        matches!(self, Self::ForgetFin) && random.chance(Self::CHANCE)
    }

    /// Whether a close is forgotten.
    pub(super) fn forgets_close(&self, random: &mut Random) -> bool {
        matches!(self, Self::ForgetClose) && random.chance(Self::CHANCE)
    }
}
