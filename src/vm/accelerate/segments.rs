//! Loading DS, ES, FS and GS (SDM vol. 3, 3.4.5). Linux does so at each switch between
//! processes: a data segment and then, for processors that keep the base of a null
//! segment, the null selector.

use iced_x86::Register;
use kvm_bindings::{kvm_segment, kvm_sregs};

use super::entry::load as load_u64;
use super::translate::Translator;
use crate::interpret::State;

/// Descriptor: accessed, writable data, not a system segment, present.
const DATA: u64 = 0x93;
const DATA_MASK: u64 = 0x9b;

/// Puts `selector` into `target`. None where KVM has to: whatever is no data segment of
/// the GDT.
pub(super) fn load(
    translator: &mut Translator,
    state: &mut State,
    sregs: &mut kvm_sregs,
    target: Register,
    selector: u16,
) -> Option<()> {
    let segment = match selector {
        0..=3 => kvm_segment {
            selector,
            unusable: 1,
            ..Default::default()
        },
        _ => data_segment(translator, sregs, selector)?,
    };
    match target {
        Register::DS => sregs.ds = segment,
        Register::ES => sregs.es = segment,
        Register::FS => {
            state.fs_base = segment.base;
            sregs.fs = segment;
        }
        Register::GS => {
            state.gs_base = segment.base;
            sregs.gs = segment;
        }
        _ => return None,
    }
    Some(())
}

/// The data segment that `selector` names in the GDT.
fn data_segment(
    translator: &mut Translator,
    sregs: &kvm_sregs,
    selector: u16,
) -> Option<kvm_segment> {
    let offset = u64::from(selector & !7);
    if selector & 4 != 0 || offset + 7 > sregs.gdt.limit.into() {
        return None;
    }
    let descriptor = load_u64(translator, sregs.gdt.base.wrapping_add(offset))?;
    let access = descriptor >> 40;
    // Any privilege level will do for ring 0, but not a lower one by the selector's.
    let dpl = access >> 5 & 3;
    if access & DATA_MASK != DATA || u64::from(selector & 3) > dpl {
        return None;
    }
    let flags = descriptor >> 52;
    let limit = (descriptor & 0xffff | descriptor >> 32 & 0xf_0000) as u32;
    let granular = flags >> 3 & 1;
    Some(kvm_segment {
        base: descriptor >> 16 & 0xff_ffff | descriptor >> 32 & 0xff00_0000,
        limit: if granular == 1 {
            limit << 12 | 0xfff
        } else {
            limit
        },
        selector,
        type_: (access & 0xf) as u8,
        present: 1,
        dpl: dpl as u8,
        db: (flags >> 2 & 1) as u8,
        s: 1,
        l: (flags >> 1 & 1) as u8,
        g: granular as u8,
        avl: (flags & 1) as u8,
        ..Default::default()
    })
}

/// The selector in `register`.
pub(super) fn selector(sregs: &kvm_sregs, register: Register) -> u16 {
    match register {
        Register::CS => sregs.cs.selector,
        Register::DS => sregs.ds.selector,
        Register::ES => sregs.es.selector,
        Register::FS => sregs.fs.selector,
        Register::GS => sregs.gs.selector,
        _ => sregs.ss.selector,
    }
}
