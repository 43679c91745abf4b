//! A small guest: pages of memory at chosen linear addresses, with refusals.

use std::ptr::NonNull;

use super::super::{Access, CodeCache, Memory, Ran, State, run};

/// Where code starts, in the first of two pages of code.
pub(super) const CODE: u64 = 0xffff_ffff_8100_0000;
/// The stack's page; the stack pointer starts in the middle of it.
pub(super) const STACK: u64 = 0xffff_c900_0000_0000;
/// Two pages of data.
pub(super) const DATA: u64 = 0xffff_8880_0010_0000;
/// The first page of data once more.
pub(super) const ALIAS: u64 = 0xffff_8880_0020_0000;
/// A page that can be read but not written.
pub(super) const SEALED: u64 = 0xffff_8880_0030_0000;

type Frame = [u8; 4096];

/// The guest and its vCPU.
pub(super) struct Guest {
    /// Linear address and index in `frames`, of which every other one is a
    /// guard that must stay as it is.
    map: Vec<(u64, usize)>,
    frames: Box<[Frame]>,
    pub(super) code: CodeCache,
    pub(super) state: State,
    /// Accesses of more bytes are refused.
    pub(super) longest: usize,
    /// Whether code may run anywhere but in the two pages of code.
    pub(super) code_everywhere: bool,
}

const GUARD: u8 = 0xa5;

impl Guest {
    /// A guest that is about to run `code`.
    pub(super) fn new(code: &[u8]) -> Self {
        let map = vec![
            (CODE, 1),
            (CODE + 4096, 3),
            (STACK, 5),
            (DATA, 7),
            (DATA + 4096, 9),
            (ALIAS, 7),
            (SEALED, 11),
        ];
        let frames = (0..13)
            .map(|frame| [if frame % 2 == 0 { GUARD } else { 0 }; 4096])
            .collect();
        let mut gpr = [0; 16];
        gpr[4] = STACK + 2048;
        let mut guest = Self {
            map,
            frames,
            code: CodeCache::new(),
            state: State {
                gpr,
                rip: CODE,
                rflags: 2,
                fs_base: 0,
                gs_base: 0,
            },
            longest: 4096,
            code_everywhere: false,
        };
        guest.put(CODE, code);
        guest
    }

    /// Runs it for `budget`.
    pub(super) fn run(&mut self, budget: u64) -> Ran {
        let mut state = self.state.clone();
        let mut code = std::mem::take(&mut self.code);
        let ran = run(&mut state, self, &mut code, budget);
        self.state = state;
        self.code = code;
        assert!(self.guarded(), "wrote outside of its pages");
        ran
    }

    fn guarded(&self) -> bool {
        let mut guards = self.frames.iter().step_by(2);
        guards.all(|frame| frame.iter().all(|byte| *byte == GUARD))
    }

    fn frame(&self, address: u64) -> Option<usize> {
        let page = address & !4095;
        let found = self.map.iter().find(|(linear, _)| *linear == page)?;
        Some(found.1)
    }

    /// The frame number of the page at `address`.
    pub(super) fn frame_number(&self, address: u64) -> u64 {
        self.frame(address).expect("a mapped page") as u64
    }

    /// All of memory.
    pub(super) fn frames(&self) -> &[Frame] {
        &self.frames
    }

    pub(super) fn put(&mut self, address: u64, bytes: &[u8]) {
        for (address, byte) in (address..).zip(bytes) {
            let frame = self.frame(address).expect("a mapped page");
            self.frames[frame][address as usize % 4096] = *byte;
        }
    }

    pub(super) fn put_word(&mut self, address: u64, value: u64) {
        self.put(address, &value.to_le_bytes());
    }

    pub(super) fn bytes<const N: usize>(&self, address: u64) -> [u8; N] {
        std::array::from_fn(|offset| {
            let address = address + offset as u64;
            self.frames[self.frame(address).expect("a mapped page")][address as usize % 4096]
        })
    }

    pub(super) fn word(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.bytes(address))
    }
}

impl Memory for Guest {
    fn host(&mut self, address: u64, len: usize, access: Access) -> Option<NonNull<u8>> {
        assert!((1..=4096).contains(&len), "{len} bytes");
        let frame = self.frame(address)?;
        let offset = address as usize % 4096;
        let sealed = access == Access::Write && address & !4095 == SEALED;
        if offset + len > 4096 || len > self.longest || sealed {
            return None;
        }
        Some(NonNull::from(&mut self.frames[frame][offset..]).cast())
    }

    fn code(&mut self, address: u64) -> Option<(u64, NonNull<u8>)> {
        let frame = self.frame(address)?;
        let code = (CODE..CODE + 8192).contains(&address) || self.code_everywhere;
        code.then(|| (frame as u64, NonNull::from(&mut self.frames[frame]).cast()))
    }
}
