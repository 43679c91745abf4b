//! Copies and fills that our kernel asks for by an OUT, see [`crate::emulate::Bulk`]:
//! done without leaving to KVM.

#![allow(unsafe_code)]

use super::ram::PAGE;
use super::translate::Translator;
use crate::emulate::Bulk;
use crate::interpret::{Access, Memory, State};

const RCX: usize = 1;
const RSI: usize = 6;
const RDI: usize = 7;
/// Bytes done at a time, so that the vCPU's thread comes back in milliseconds.
const MAX_BYTES: u64 = 16 << 20;

/// Does as much of `bulk` as can be accessed, and moves RDI, RSI and RCX on by that.
pub(super) fn bulk(translator: &mut Translator, state: &mut State, bulk: Bulk) {
    let mut left = state.gpr[RCX].min(MAX_BYTES);
    while left > 0 {
        let Some(done) = piece(translator, state, bulk, left) else {
            return;
        };
        state.gpr[RDI] = state.gpr[RDI].wrapping_add(done);
        if bulk == Bulk::Copy {
            state.gpr[RSI] = state.gpr[RSI].wrapping_add(done);
        }
        state.gpr[RCX] -= done;
        left -= done;
    }
}

/// What lies in one page of each operand; how many bytes that were.
fn piece(translator: &mut Translator, state: &State, bulk: Bulk, left: u64) -> Option<u64> {
    let (from, to) = (state.gpr[RSI], state.gpr[RDI]);
    let in_page = |address: u64| PAGE - address % PAGE;
    let mut len = left.min(in_page(to));
    match bulk {
        Bulk::Fill(value) => {
            let target = translator.host(to, len as usize, Access::Write)?;
            // SAFETY: `host` gives `len` writable bytes of guest RAM.
            unsafe { target.write_bytes(value, len as usize) };
        }
        Bulk::Copy => {
            len = len.min(in_page(from));
            let target = translator.host(to, len as usize, Access::Write)?;
            let source = translator.host(from, len as usize, Access::Read)?;
            // SAFETY: both are `len` bytes of guest RAM, which stays where it is, and
            // which may overlap.
            unsafe { source.copy_to(target, len as usize) };
        }
    }
    Some(len)
}
