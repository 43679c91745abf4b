//! Where the guest's kernel is entered.
//!
//! Linux's exceptions and interrupts all pass through one function, `error_entry`,
//! which their entry points call first. The page fault's is found by the IDT.

use iced_x86::{Decoder, DecoderOptions, FlowControl};
use kvm_bindings::kvm_sregs;

use super::privileged::fetch;
use super::translate::Translator;
use crate::interpret::{Access, Memory};

const PAGE_FAULT: u64 = 14;
/// Bytes of a gate (SDM vol. 3, 6.14.1).
const GATE: u64 = 16;
/// Instructions of an entry point that are looked at.
const LOOKED_AT: usize = 8;

/// What was found last.
#[derive(Debug, Default)]
pub(super) struct Entry {
    handler: u64,
    entry: u64,
}

impl Entry {
    /// The first function that the page fault's entry point calls, or the entry point
    /// itself; none as long as there is no IDT.
    pub fn find(&mut self, translator: &mut Translator, sregs: &kvm_sregs) -> Option<u64> {
        if u64::from(sregs.idt.limit) < (PAGE_FAULT + 1) * GATE - 1 {
            return None;
        }
        let gate = sregs.idt.base.wrapping_add(PAGE_FAULT * GATE);
        let low = load(translator, gate)?;
        let high = load(translator, gate.wrapping_add(8))?;
        let handler = low & 0xffff | low >> 32 & 0xffff_0000 | high << 32;
        if self.handler != handler {
            self.handler = handler;
            self.entry = first_call(translator, handler).unwrap_or(handler);
        }
        Some(self.entry)
    }
}

fn first_call(translator: &mut Translator, handler: u64) -> Option<u64> {
    let mut rip = handler;
    for _ in 0..LOOKED_AT {
        let bytes = fetch(translator, rip)?;
        let decoded = Decoder::with_ip(64, &bytes, rip, DecoderOptions::NONE).decode();
        match decoded.flow_control() {
            FlowControl::Next => rip = decoded.next_ip(),
            FlowControl::Call if decoded.is_call_near() => {
                return Some(decoded.near_branch_target());
            }
            _ => return None,
        }
    }
    None
}

/// 8 bytes at `address`, in whatever pages.
#[allow(unsafe_code)]
pub(super) fn load(translator: &mut Translator, address: u64) -> Option<u64> {
    let host = translator.host(address, 8, Access::Read)?;
    // SAFETY: `host` gives 8 readable bytes.
    Some(unsafe { host.cast::<u64>().read_unaligned() })
}
