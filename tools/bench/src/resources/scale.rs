//! Whether operations cost more in a volume with many files.

use anyhow::Result;

use crate::lab::Lab;
use crate::population::Population;
use crate::speeds::{CREATE, RENAME, STAT, in_turns};
use crate::systems::{Phifs, System};
use crate::table::{Figure, Limit};

const FEW: usize = 20_000;
const MANY: usize = 2_000_000;
/// Operations of one measurement, of each kind.
const OPERATIONS: usize = 5_000;

pub fn speed_by_count(lab: &Lab) -> Result<Vec<Figure>> {
    let scale = lab.bench.scale;
    let volume = |name, count| -> Result<(Phifs, Population)> {
        let phifs = lab.phifs(name)?;
        let files = Population::new(phifs.dir(), count);
        files.make(0..count, 64..65)?;
        phifs.settle()?;
        Ok((phifs, files))
    };
    let few = volume("few", scale.count(FEW))?;
    let many = volume("many", scale.count(MANY))?;
    let (at_few, at_many) = (few.1.count, many.1.count);

    let operations = scale.count(OPERATIONS).min(at_few / 4);
    let kinds = [CREATE, STAT, RENAME];
    let rates = in_turns(lab, [(&few.0, &few.1), (&many.0, &many.1)], &kinds, operations)?;
    let figures = kinds.iter().zip(rates).map(|(kind, [few, many])| {
        let detail = format!("{many:.0} per second at {at_many} files, {few:.0} at {at_few}");
        let what = format!("{} at 2,000,000 files against 20,000", kind.name);
        Figure::new(what, many / few, "", Limit::AtLeast(0.8), detail)
    });
    Ok(figures.collect())
}
