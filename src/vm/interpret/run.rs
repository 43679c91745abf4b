//! The loop: look up, execute, advance.

use super::cache::MAX_LENGTH;
use super::cpu::{CODE_PAGE, Cpu};
use super::decode::Reader;
use super::execute::{Flow, Handler, Vm};
use super::flags::{IF, RF, TF, VIF, VIP, VM as VIRTUAL};
use super::op::{Kind, Op, SLOTS};
use super::table::Table;
use super::width::copy_code;
use super::{CodeCache, Memory, PAGE_BYTES, Ran, State, Stop};

/// Bits of an address inside of its page.
const OFFSET: u64 = PAGE_BYTES as u64 - 1;

/// Executes up to `budget` instructions. Long string instructions count as
/// more than one, and may be stopped in between.
pub fn run<M: Memory>(state: &mut State, memory: &mut M, code: &mut CodeCache, budget: u64) -> Ran {
    // Debugging, and modes that are not ours.
    if state.rflags & (TF | RF | VIRTUAL | VIF | VIP) != 0 {
        return Ran {
            stop: Stop::Leave,
            instructions: 0,
        };
    }
    let mut vm = Vm {
        cpu: Cpu::new(state, budget),
        memory,
    };
    let (stop, rip) = vm.run(code, state.rip);
    vm.cpu.save(state);
    state.rip = rip;
    Ran {
        stop,
        instructions: budget - vm.cpu.left,
    }
}

impl<M: Memory> Vm<'_, M> {
    /// Runs from `rip` on; why it stopped, and where.
    fn run(&mut self, code: &mut CodeCache, mut rip: u64) -> (Stop, u64) {
        let handlers: &[Handler<M>; Kind::COUNT * SLOTS] = &Table::<M>::HANDLERS;
        'page: loop {
            if self.cpu.left == 0 {
                return (Stop::Budget, rip);
            }
            let Some((frame, bytes)) = self.memory.code(rip) else {
                return (Stop::Leave, rip);
            };
            let base = rip & !OFFSET;
            self.cpu.set_register(CODE_PAGE, base);
            let (page, mut at) = code.block(frame, bytes, (rip & OFFSET) as u16);
            let ops = page.ops.as_slice();
            loop {
                // The budget is brought up to date once for instructions in a row.
                let first = at;
                let limit = usize::try_from(self.cpu.left).unwrap_or(usize::MAX);
                let (op, flow) = loop {
                    let op = &ops[at];
                    at += 1;
                    if at - first > limit {
                        self.cpu.left = 0;
                        return (Stop::Budget, base.wrapping_add(u64::from(op.at)));
                    }
                    let flow = handlers[usize::from(op.handler)](self, op);
                    if flow != Flow::Next {
                        break (op, flow);
                    }
                };
                self.cpu.left = self.cpu.left.saturating_sub((at - first) as u64);
                if flow == Flow::Jump {
                    rip = self.cpu.target;
                    if rip & !OFFSET == base
                        && let Some(found) = page.find((rip & OFFSET) as u16)
                    {
                        at = found;
                        continue;
                    }
                    continue 'page;
                }
                let op = *op;
                match self.unusual(code, base, &op, flow) {
                    Ok(next) => rip = next,
                    Err(stopped) => return stopped,
                }
                continue 'page;
            }
        }
    }

    /// What is to be done after `flow` of `op` in the page of code at `base`:
    /// where to go on, or why and where to stop.
    #[cold]
    fn unusual(
        &mut self,
        code: &mut CodeCache,
        base: u64,
        op: &Op,
        flow: Flow,
    ) -> Result<u64, (Stop, u64)> {
        let rip = base.wrapping_add(u64::from(op.at));
        match flow {
            Flow::Next => Ok(self.cpu.next(op)),
            Flow::Jump => Ok(self.cpu.target),
            Flow::Leave => {
                self.cpu.left += 1;
                Err((Stop::Leave, rip))
            }
            Flow::Partly => Err((Stop::Leave, rip)),
            Flow::Again => Err((Stop::Budget, rip)),
            Flow::Cross => self.crossing(code, rip),
            Flow::Shadow => self.in_shadow(code, rip, self.cpu.next(op)),
        }
    }

    /// Executes the instruction at `rip`, which lies in two pages.
    fn crossing(&mut self, code: &mut CodeCache, rip: u64) -> Result<u64, (Stop, u64)> {
        self.cpu.left += 1;
        let Some(op) = self.fetch_crossing(rip) else {
            return Err((Stop::Leave, rip));
        };
        self.cpu.left -= 1;
        let flow = Table::<M>::HANDLERS[usize::from(op.handler)](self, &op);
        self.unusual(code, rip & !OFFSET, &op, flow)
    }

    /// Decodes the instruction at `rip` from two pages. It is not cached:
    /// either page may change.
    fn fetch_crossing(&mut self, rip: u64) -> Option<Op> {
        let offset = (rip & OFFSET) as usize;
        let mut bytes = [0; MAX_LENGTH];
        let (_, page) = self.memory.code(rip)?;
        let len = copy_code(page, offset, &mut bytes);
        let rest = &mut bytes[len..];
        if !rest.is_empty() {
            let (_, page) = self.memory.code(rip.wrapping_add(len as u64))?;
            copy_code(page, 0, rest);
        }
        Some(Reader::new(&bytes, offset as u16).read().0)
    }

    /// Executes the instruction at `next`, which no interrupt may separate
    /// from the STI at `sti`. If it is left, so is the STI.
    fn in_shadow(&mut self, code: &mut CodeCache, sti: u64, next: u64) -> Result<u64, (Stop, u64)> {
        let left = self.cpu.left;
        let outcome = self.fetch(code, next).map(|op| {
            self.cpu.left = left.saturating_sub(1);
            let flow = Table::<M>::HANDLERS[usize::from(op.handler)](self, &op);
            (op, flow)
        });
        match outcome {
            Some((op, flow)) if !matches!(flow, Flow::Leave | Flow::Cross) => {
                self.unusual(code, next & !OFFSET, &op, flow)
            }
            _ => {
                self.cpu.system &= !IF;
                self.cpu.left = left + 1;
                Err((Stop::Leave, sti))
            }
        }
    }

    /// The instruction at `rip`.
    fn fetch(&mut self, code: &mut CodeCache, rip: u64) -> Option<Op> {
        let (frame, bytes) = self.memory.code(rip)?;
        self.cpu.set_register(CODE_PAGE, rip & !OFFSET);
        let (page, at) = code.block(frame, bytes, (rip & OFFSET) as u16);
        Some(page.ops[at])
    }
}
