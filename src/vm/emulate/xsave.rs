//! The FPU's state and its formats in memory (SDM vol. 1, chapter 13; the
//! legacy region as FXSAVE writes it, 10.5.1). Pure: bytes in, bytes out.

#![allow(unsafe_code)]

use std::arch::x86_64::{__cpuid_count, _fxsave64};
use std::ops::Range;
use std::sync::OnceLock;

use super::cpu::Exception;

/// XSTATE_BV and XCR0 bit of the x87 registers.
pub(super) const X87: u64 = 1;
/// Bit of the XMM registers.
pub(super) const SSE: u64 = 1 << 1;
/// Bit of the upper halves of the YMM registers.
pub(super) const AVX: u64 = 1 << 2;
/// MXCSR belongs to both.
const MXCSR_OWNERS: u64 = SSE | AVX;

/// Bytes of the legacy region and the header, the least that an area has.
pub(super) const HEADER_END: usize = 576;
/// Bytes of the legacy region.
pub(super) const LEGACY_END: usize = 512;
const XSTATE_BV: Range<usize> = 512..520;
/// XCOMP_BV and what must be zero with it in the standard format.
const RESERVED: Range<usize> = 520..536;

const FCW: Range<usize> = 0..2;
const FSW: Range<usize> = 2..4;
const FTW: usize = 4;
const X87_HEAD: Range<usize> = 0..24;
const MXCSR: Range<usize> = 24..28;
const MXCSR_MASK: Range<usize> = 28..32;
const X87_REGISTERS: Range<usize> = 32..160;
const XMM: Range<usize> = 160..416;
/// Upper parts of FIP and FDP, which the forms without REX.W do not hold. Their
/// place is taken by segment selectors, which processors have given up.
const POINTER_TOPS: [Range<usize>; 2] = [12..16, 20..24];

const FCW_INITIAL: u16 = 0x37f;
const MXCSR_INITIAL: u32 = 0x1f80;
/// If FXSAVE stores a mask of 0 (SDM vol. 1, 11.6.6).
const MXCSR_MASK_DEFAULT: u32 = 0xffbf;

/// Where the processor's state components lie in the standard format.
#[derive(Debug, Clone)]
pub(super) struct XsaveLayout {
    /// Components 2 and up, which lie behind the header.
    extended: Vec<Component>,
    /// Bytes of all components together.
    size: usize,
    /// Bits that MXCSR may have.
    mxcsr_mask: u32,
}

/// One state component behind the header.
#[derive(Debug, Clone, Copy)]
pub(super) struct Component {
    /// Its bit in XCR0.
    pub(super) number: u32,
    /// Byte offset in the area.
    pub(super) offset: usize,
    /// Bytes.
    pub(super) size: usize,
}

impl Component {
    fn bit(&self) -> u64 {
        1 << self.number
    }

    fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.size
    }
}

impl XsaveLayout {
    pub(super) fn new(extended: Vec<Component>, mxcsr_mask: u32) -> Self {
        let end = extended.iter().map(|component| component.range().end).max();
        Self {
            size: end.unwrap_or(0).max(HEADER_END),
            extended,
            mxcsr_mask,
        }
    }

    /// This processor's, from CPUID leaf 0xD (SDM vol. 1, 13.2).
    pub(super) fn host() -> &'static Self {
        static HOST: OnceLock<XsaveLayout> = OnceLock::new();
        HOST.get_or_init(|| {
            let all = __cpuid_count(0xd, 0);
            let valid = u64::from(all.edx) << 32 | u64::from(all.eax);
            let component = |number| {
                let leaf = __cpuid_count(0xd, number);
                Component {
                    number,
                    offset: leaf.ebx as usize,
                    size: leaf.eax as usize,
                }
            };
            let extended = (2..63).filter(|bit| valid >> bit & 1 == 1).map(component);
            let mut layout = Self::new(extended.collect(), host_mxcsr_mask());
            layout.size = layout.size.max(all.ecx as usize);
            layout
        })
    }

    /// Bytes of an area with every component of this processor.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Bytes from the start of an area to the end of its last component in `mask`.
    pub(super) fn extent(&self, mask: u64) -> usize {
        let ends = self.selected(mask).map(|component| component.range().end);
        ends.max().unwrap_or(0).max(HEADER_END)
    }

    fn selected(&self, mask: u64) -> impl Iterator<Item = &Component> {
        self.extended
            .iter()
            .filter(move |component| component.bit() & mask != 0)
    }
}

fn host_mxcsr_mask() -> u32 {
    #[repr(align(16))]
    struct Legacy([u8; LEGACY_END]);
    let mut legacy = Legacy([0; LEGACY_END]);
    // SAFETY: every x86-64 processor has FXSAVE; the area is 512 bytes, aligned.
    unsafe { _fxsave64(legacy.0.as_mut_ptr()) };
    match u32_at(&legacy.0, MXCSR_MASK) {
        0 => MXCSR_MASK_DEFAULT,
        mask => mask,
    }
}

/// Whether pointers are saved whole (REX.W) or as 32-bit offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pointers {
    /// 64 bits.
    Wide,
    /// 32 bits.
    Narrow,
}

/// The vCPU's state: an area in the standard format in which components that
/// are not in use hold their initial values.
pub(super) struct FpuState<'a> {
    layout: &'a XsaveLayout,
    area: Vec<u8>,
}

impl<'a> FpuState<'a> {
    /// From what KVM says, `XsaveLayout::size` bytes.
    pub(super) fn new(layout: &'a XsaveLayout, mut area: Vec<u8>) -> Self {
        if area.len() < layout.size {
            area.resize(layout.size, 0);
        }
        let mut state = Self { layout, area };
        let in_use = state.in_use();
        state.initialise(!in_use);
        if in_use & MXCSR_OWNERS == 0 {
            state.put_mxcsr(MXCSR_INITIAL);
        }
        let mask = layout.mxcsr_mask.to_le_bytes();
        state.area[MXCSR_MASK].copy_from_slice(&mask);
        state
    }

    /// For KVM.
    pub(super) fn into_bytes(mut self) -> Vec<u8> {
        // KVM takes MXCSR over only with one of its owners.
        if self.mxcsr() != MXCSR_INITIAL {
            self.set_in_use(self.in_use() | SSE);
        }
        self.area
    }

    /// XINUSE: components that may differ from their initial values.
    pub(super) fn in_use(&self) -> u64 {
        u64_at(&self.area, XSTATE_BV)
    }

    fn set_in_use(&mut self, mask: u64) {
        self.area[XSTATE_BV].copy_from_slice(&mask.to_le_bytes());
    }

    /// x87 status word.
    pub(super) fn status(&self) -> u16 {
        u16_at(&self.area, FSW)
    }

    /// Sets the x87 status word.
    pub(super) fn set_status(&mut self, status: u16) {
        self.area[FSW].copy_from_slice(&status.to_le_bytes());
        self.set_in_use(self.in_use() | X87);
    }

    /// x87 control word.
    pub(super) fn control(&self) -> u16 {
        u16_at(&self.area, FCW)
    }

    /// FNINIT: everything but the registers' contents (SDM vol. 1, 8.1.4-8.1.8).
    pub(super) fn reset_x87(&mut self) {
        self.area[X87_HEAD].fill(0);
        self.area[FCW].copy_from_slice(&FCW_INITIAL.to_le_bytes());
        self.set_in_use(self.in_use() | X87);
    }

    /// EMMS: all x87 registers empty.
    pub(super) fn empty_x87(&mut self) {
        self.area[FTW] = 0;
        self.set_in_use(self.in_use() | X87);
    }

    /// MXCSR.
    pub(super) fn mxcsr(&self) -> u32 {
        u32_at(&self.area, MXCSR)
    }

    /// Sets MXCSR; #GP if a reserved bit is set.
    pub(super) fn set_mxcsr(&mut self, value: u32) -> Result<(), Exception> {
        if value & !self.layout.mxcsr_mask != 0 {
            return Err(Exception::PROTECTION);
        }
        self.put_mxcsr(value);
        Ok(())
    }

    fn put_mxcsr(&mut self, value: u32) {
        self.area[MXCSR].copy_from_slice(&value.to_le_bytes());
    }

    /// XSAVE of the components in `mask`, or of those of them in use if `optimised`
    /// (SDM vol. 1, 13.7, 13.9): calls `put` with offset and bytes of everything
    /// that is written. `old_bv` is the area's XSTATE_BV.
    pub(super) fn save<E>(
        &self,
        mask: u64,
        optimised: bool,
        pointers: Pointers,
        old_bv: u64,
        mut put: impl FnMut(usize, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let in_use = self.in_use();
        let written = if optimised { mask & in_use } else { mask };
        if written & X87 != 0 {
            put(X87_HEAD.start, &x87_head(&self.area, pointers))?;
            put(X87_REGISTERS.start, &self.area[X87_REGISTERS])?;
        }
        if mask & MXCSR_OWNERS != 0 {
            put(MXCSR.start, &self.area[MXCSR.start..MXCSR_MASK.end])?;
        }
        if written & SSE != 0 {
            put(XMM.start, &self.area[XMM])?;
        }
        for component in self.layout.selected(written) {
            put(component.offset, &self.area[component.range()])?;
        }
        let new_bv = (old_bv & !mask) | (in_use & mask);
        put(XSTATE_BV.start, &new_bv.to_le_bytes())
    }

    /// XRSTOR of the components in `mask` from `area`, which reaches to
    /// [`XsaveLayout::extent`] of those it holds (SDM vol. 1, 13.8). The state is
    /// changed only on success. The compacted format is refused as processors
    /// without XSAVEC do.
    pub(super) fn restore(
        &mut self,
        area: &[u8],
        xcr0: u64,
        mask: u64,
        pointers: Pointers,
    ) -> Result<(), Exception> {
        let held = u64_at(area, XSTATE_BV);
        if held & !xcr0 != 0 || area[RESERVED].iter().any(|&byte| byte != 0) {
            return Err(Exception::PROTECTION);
        }
        if mask & MXCSR_OWNERS != 0 {
            self.set_mxcsr(u32_at(area, MXCSR))?;
        }
        self.initialise(mask & !held);
        self.load(area, mask & held, pointers);
        self.set_in_use((self.in_use() & !mask) | (held & mask));
        Ok(())
    }

    /// FXSAVE (SDM vol. 1, 10.5.1).
    pub(super) fn save_legacy<E>(
        &self,
        with_xmm: bool,
        pointers: Pointers,
        mut put: impl FnMut(usize, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        put(X87_HEAD.start, &x87_head(&self.area, pointers))?;
        put(MXCSR.start, &self.area[MXCSR.start..MXCSR_MASK.end])?;
        put(X87_REGISTERS.start, &self.area[X87_REGISTERS])?;
        if with_xmm {
            put(XMM.start, &self.area[XMM])?;
        }
        Ok(())
    }

    /// FXRSTOR from the 512 bytes of `area`.
    pub(super) fn restore_legacy(
        &mut self,
        area: &[u8],
        with_xmm: bool,
        pointers: Pointers,
    ) -> Result<(), Exception> {
        self.set_mxcsr(u32_at(area, MXCSR))?;
        let mask = if with_xmm { X87 | SSE } else { X87 };
        self.load(area, mask, pointers);
        self.set_in_use(self.in_use() | mask);
        Ok(())
    }

    /// Copies the components in `mask` from `area`.
    fn load(&mut self, area: &[u8], mask: u64, pointers: Pointers) {
        if mask & X87 != 0 {
            self.area[X87_HEAD].copy_from_slice(&x87_head(area, pointers));
            self.area[X87_REGISTERS].copy_from_slice(&area[X87_REGISTERS]);
        }
        if mask & SSE != 0 {
            self.area[XMM].copy_from_slice(&area[XMM]);
        }
        for component in self.layout.selected(mask) {
            self.area[component.range()].copy_from_slice(&area[component.range()]);
        }
    }

    /// Gives the components in `mask` their initial values (SDM vol. 1, 13.6).
    fn initialise(&mut self, mask: u64) {
        if mask & X87 != 0 {
            self.area[X87_HEAD].fill(0);
            self.area[FCW].copy_from_slice(&FCW_INITIAL.to_le_bytes());
            self.area[X87_REGISTERS].fill(0);
        }
        if mask & SSE != 0 {
            self.area[XMM].fill(0);
        }
        for component in self.layout.selected(mask) {
            self.area[component.range()].fill(0);
        }
    }
}

/// XSTATE_BV of an area.
pub(super) fn xstate_bv(area: &[u8]) -> u64 {
    u64_at(area, XSTATE_BV)
}

/// Control and status of the x87 registers, as one form of the instructions has it.
fn x87_head(area: &[u8], pointers: Pointers) -> [u8; 24] {
    let mut head = [0; 24];
    head.copy_from_slice(&area[X87_HEAD]);
    if pointers == Pointers::Narrow {
        for top in POINTER_TOPS {
            head[top].fill(0);
        }
    }
    head
}

fn u16_at(area: &[u8], range: Range<usize>) -> u16 {
    let mut bytes = [0; 2];
    bytes.copy_from_slice(&area[range]);
    u16::from_le_bytes(bytes)
}

fn u32_at(area: &[u8], range: Range<usize>) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&area[range]);
    u32::from_le_bytes(bytes)
}

fn u64_at(area: &[u8], range: Range<usize>) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&area[range]);
    u64::from_le_bytes(bytes)
}
