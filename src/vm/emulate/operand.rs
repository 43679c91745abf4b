//! A piece of the guest's linear memory.

use vm_memory::{Bytes, GuestAddress, GuestMemory};

use super::EmulateError;
use super::instruction::Stop;
use super::paging::{Access, PAGE, Paging};

/// A range of linear addresses of which every page was found accessible before
/// the first byte is touched, so that a fault leaves no half-done access.
pub(super) struct Operand<'a, M> {
    memory: &'a M,
    linear: u64,
    length: usize,
    /// Physical address of each page's part of the range.
    pages: Vec<u64>,
}

impl<'a, M: GuestMemory> Operand<'a, M> {
    /// Maps `length` bytes at `linear`; both ends must be canonical.
    pub(super) fn map(
        memory: &'a M,
        paging: &Paging,
        linear: u64,
        length: usize,
        access: Access,
    ) -> Result<Self, Stop> {
        let mut operand = Self {
            memory,
            linear,
            length,
            pages: Vec::new(),
        };
        let mut offset = 0;
        while offset < length {
            let at = linear.wrapping_add(offset as u64);
            let part = operand.part(offset, length - offset);
            let physical = paging.translate(memory, at, access)?;
            if !memory.check_range(GuestAddress(physical), part) {
                return Err(operand.not_ram(offset, physical).into());
            }
            operand.pages.push(physical);
            offset += part;
        }
        Ok(operand)
    }

    /// Fills `buffer` from `offset` on.
    pub(super) fn read(&self, offset: usize, buffer: &mut [u8]) -> Result<(), EmulateError> {
        let mut done = 0;
        while done < buffer.len() {
            let (physical, part) = self.locate(offset + done, buffer.len() - done)?;
            self.memory
                .read_slice(&mut buffer[done..done + part], GuestAddress(physical))
                .map_err(|_| self.not_ram(offset + done, physical))?;
            done += part;
        }
        Ok(())
    }

    /// Writes `data` from `offset` on.
    pub(super) fn write(&self, offset: usize, data: &[u8]) -> Result<(), EmulateError> {
        let mut done = 0;
        while done < data.len() {
            let (physical, part) = self.locate(offset + done, data.len() - done)?;
            self.memory
                .write_slice(&data[done..done + part], GuestAddress(physical))
                .map_err(|_| self.not_ram(offset + done, physical))?;
            done += part;
        }
        Ok(())
    }

    /// The physical address behind the byte at `offset`, and how many of `wanted`
    /// bytes follow in the same page.
    pub(super) fn locate(
        &self,
        offset: usize,
        wanted: usize,
    ) -> Result<(u64, usize), EmulateError> {
        let in_first = (self.linear % PAGE) as usize;
        let page = (in_first + offset) / PAGE as usize;
        let start = (page * PAGE as usize).saturating_sub(in_first);
        match self.pages.get(page) {
            Some(physical) if offset + wanted <= self.length => {
                let physical = physical + (offset - start) as u64;
                Ok((physical, self.part(offset, wanted)))
            }
            _ => Err(self.not_ram(offset, 0)),
        }
    }

    /// How many of `wanted` bytes at `offset` lie in that page.
    fn part(&self, offset: usize, wanted: usize) -> usize {
        let in_page = self.linear.wrapping_add(offset as u64) % PAGE;
        wanted.min((PAGE - in_page) as usize)
    }

    fn not_ram(&self, offset: usize, physical: u64) -> EmulateError {
        EmulateError::NotRam {
            linear: self.linear.wrapping_add(offset as u64),
            physical,
        }
    }
}
