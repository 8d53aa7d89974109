//! Deliberate faults of the relay, by name. A sweep must notice each of them.

use zproxy_io::sim::{Edit, Sabotage};
use zproxy_proto::wire::{Decoder, Frame, Released};

use crate::{Saboteur, Victim};

/// A deliberate fault.
#[derive(Clone, Copy, Debug)]
pub struct Mutant {
    /// What is done wrong.
    pub name: &'static str,
    /// Where.
    pub victim: Victim,
    /// How.
    pub saboteur: Saboteur,
}

/// All of them.
pub const MUTANTS: &[Mutant] = &[
    mutant("gateway drops a byte", Victim::Gateway, || Sabotage::DropByte),
    mutant("client drops a byte", Victim::Client, || Sabotage::DropByte),
    mutant("gateway repeats a byte", Victim::Gateway, || Sabotage::RepeatByte),
    mutant("client delivers into the wrong flow", Victim::Client, || Sabotage::MixFlows),
    mutant("gateway delivers into the wrong flow", Victim::Gateway, || Sabotage::MixFlows),
    mutant("gateway leaks a lease", Victim::Gateway, || Sabotage::LeakLease),
    mutant("client leaks a lease", Victim::Client, || Sabotage::LeakLease),
    mutant("gateway forgets a FIN", Victim::Gateway, || Sabotage::ForgetFin),
    mutant("client forgets a FIN", Victim::Client, || Sabotage::ForgetFin),
    mutant("gateway forgets to close", Victim::Gateway, || Sabotage::ForgetClose),
    mutant("client forgets to close", Victim::Client, || Sabotage::ForgetClose),
    mutant("gateway forgets a Fin frame", Victim::Gateway, || Sabotage::Edit(without_fins())),
    mutant("client forgets a Fin frame", Victim::Client, || Sabotage::Edit(without_fins())),
    mutant("client forgets a release", Victim::Client, || Sabotage::Edit(without_releases())),
    mutant("client releases too early", Victim::Client, || Sabotage::Edit(early_release())),
];

const fn mutant(name: &'static str, victim: Victim, saboteur: Saboteur) -> Mutant {
    Mutant { name, victim, saboteur }
}

/// Every so many frames one is treated wrongly.
const EVERY: u32 = 5;

fn without_fins() -> Edit {
    let mut count = 0;
    edit_frames(move |frame, out| {
        count += u32::from(matches!(frame, Frame::Fin(_)));
        if !matches!(frame, Frame::Fin(_)) || count % EVERY != 0 {
            out.push(frame);
        }
    })
}

fn without_releases() -> Edit {
    let mut count = 0;
    edit_frames(move |frame, out| {
        count += u32::from(matches!(frame, Frame::Released(_)));
        if !matches!(frame, Frame::Released(_)) || count % EVERY != 0 {
            out.push(frame);
        }
    })
}

fn early_release() -> Edit {
    edit_frames(|frame, out| {
        let early = match &frame {
            Frame::Fin(fin) => Some(Released { proxy: fin.proxy, flow: fin.flow }),
            _ => None,
        };
        out.push(frame);
        out.extend(early.map(Frame::Released));
    })
}

/// Changes what consists of whole frames, and leaves the rest alone.
fn edit_frames(mut edit: impl FnMut(Frame, &mut Vec<Frame>) + 'static) -> Edit {
    Box::new(move |buf| {
        let mut decoder = Decoder::new();
        decoder.push(buf);
        let mut frames = Vec::new();
        while let Ok(Some(frame)) = decoder.next_frame() {
            frames.push(frame);
        }
        if frames.is_empty() || decoder.buffered() > 0 || decoder.next_frame().is_err() {
            return;
        }
        let mut edited = Vec::new();
        for frame in frames {
            edit(frame, &mut edited);
        }
        buf.clear();
        edited.iter().for_each(|frame| frame.encode_into(buf));
    })
}
