//! Reads a component's sections: how large its functions are, what one instance is made of, its names and manifests.
//!
//! What one instance is made of is found by following the instantiations: a component of a few hundred bytes can
//! instantiate itself a billion times over by doubling, and a compiler that unrolls this must never see it.

use bulkhead_model::limits::{ContributionKind, KIB, Limits, PackageLimits};
use bulkhead_model::manifest::MANIFEST_SECTION;
use serde::{Deserialize, Serialize};
use wasmparser::{
    ComponentAlias, ComponentExternalKind, ComponentInstance, ComponentOuterAliasKind, ComponentTypeRef, Encoding,
    Instance, Parser, Payload, TypeRef,
};

use super::{PackageError, offset};

/// Components inside components inside components.
const NESTING_MAX: usize = 16;

/// How many of each one instance of a component needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub core_instances: u64,
    pub memories: u64,
    pub tables: u64,
    /// Instances of the components inside it.
    pub component_instances: u64,
    /// Functions in the file, however often they are instantiated.
    pub functions: u64,
}

impl Counts {
    fn add_instance_of(&mut self, other: &Self) {
        self.core_instances = self.core_instances.saturating_add(other.core_instances);
        self.memories = self.memories.saturating_add(other.memories);
        self.tables = self.tables.saturating_add(other.tables);
        self.component_instances = self.component_instances.saturating_add(other.component_instances);
    }

    pub(super) fn check(&self, limits: &PackageLimits) -> Result<(), PackageError> {
        for (what, count, limit) in [
            ("core instances", self.core_instances, limits.core_instances),
            ("memories", self.memories, limits.memories),
            ("tables", self.tables, limits.tables),
            ("component instances", self.component_instances, limits.component_instances),
        ] {
            if count > u64::from(limit) {
                return Err(PackageError::TooMany { what, count, limit: limit.into() });
            }
        }
        Ok(())
    }
}

/// Modules and components that one component may define, import, export or name again; and names that a package may import or export.
/// A package that a tool chain made has some dozens. They are kept in memory from a few bytes each, before anything else is known of the package.
const DEFINITIONS_MAX: usize = 10_000;

/// What was found.
pub(super) struct Shape<'a> {
    pub(super) counts: Counts,
    pub(super) imports: Vec<String>,
    pub(super) exports: Vec<String>,
    pub(super) manifests: Vec<&'a [u8]>,
}

/// A component or module whose sections are being read. What it defines is `None` where the definition comes from
/// outside and so is not known.
#[derive(Default)]
struct Frame {
    is_module: bool,
    total: Counts,
    modules: Vec<Option<Counts>>,
    components: Vec<Option<Counts>>,
}

pub(super) fn read<'a>(package: &'a [u8], limits: &PackageLimits) -> Result<Shape<'a>, PackageError> {
    let mut shape =
        Shape { counts: Counts::default(), imports: Vec::new(), exports: Vec::new(), manifests: Vec::new() };
    let mut frames: Vec<Frame> = Vec::new();
    let mut functions = 0_u64;
    for payload in Parser::new(0).parse_all(package) {
        let payload =
            payload.map_err(|error| if frames.is_empty() { not_wasm() } else { PackageError::invalid(&error) })?;
        match &payload {
            Payload::Version { encoding, .. } => {
                if frames.is_empty() && *encoding == Encoding::Module {
                    let hint = " but a core module; build it for the target `wasm32-wasip2`";
                    return Err(PackageError::NotAComponent { hint });
                }
                if frames.len() >= NESTING_MAX {
                    let limit = offset(NESTING_MAX);
                    return Err(PackageError::TooMany {
                        what: "components nested in each other",
                        count: limit + 1,
                        limit,
                    });
                }
                frames.push(Frame { is_module: *encoding == Encoding::Module, ..Frame::default() });
            }
            Payload::CodeSectionEntry(body) => {
                functions += 1;
                let range = body.range();
                check_function(offset(range.start), offset(range.end), functions, limits)?;
            }
            Payload::CustomSection(section) if frames.len() == 1 && section.name() == MANIFEST_SECTION => {
                shape.manifests.push(section.data());
                few("manifests", shape.manifests.len())?;
            }
            Payload::ComponentImportSection(section) => {
                for import in section.clone() {
                    let import = import.map_err(|error| PackageError::invalid(&error))?;
                    if frames.len() == 1 {
                        shape.imports.push(import.name.name.to_owned());
                        few("imports", shape.imports.len())?;
                    }
                    top(&mut frames).define_unknown_type(import.ty);
                    top(&mut frames).check()?;
                }
            }
            Payload::ComponentExportSection(section) => {
                for export in section.clone() {
                    let export = export.map_err(|error| PackageError::invalid(&error))?;
                    if frames.len() == 1 {
                        shape.exports.push(export.name.name.to_owned());
                        few("exports", shape.exports.len())?;
                    }
                    top(&mut frames).define_again(export.kind, export.index);
                    top(&mut frames).check()?;
                }
            }
            Payload::End(_) => {
                let Some(frame) = frames.pop() else { continue };
                match frames.last_mut() {
                    Some(outer) if frame.is_module => outer.modules.push(Some(frame.total)),
                    Some(outer) => outer.components.push(Some(frame.total)),
                    None => shape.counts = Counts { functions, ..frame.total },
                }
                frames.last().map_or(Ok(()), Frame::check)?;
            }
            other => count_section(other, &mut frames)?,
        }
    }
    Ok(shape)
}

fn not_wasm() -> PackageError {
    PackageError::NotAComponent { hint: "" }
}

fn check_function(start: u64, end: u64, functions: u64, limits: &PackageLimits) -> Result<(), PackageError> {
    if functions > u64::from(limits.functions) {
        return Err(PackageError::TooMany { what: "functions", count: functions, limit: limits.functions.into() });
    }
    let bytes = end - start;
    if bytes > limits.function_bytes {
        return Err(PackageError::FunctionTooLarge { offset: start, bytes, limit: limits.function_bytes });
    }
    Ok(())
}

/// No call gets more than this, so what begins with more could never run.
fn most() -> Limits {
    Limits::ceiling_for(ContributionKind::Action)
}

fn few(what: &'static str, count: usize) -> Result<(), PackageError> {
    at_most(what, offset(count), offset(DEFINITIONS_MAX))
}

fn at_most(what: &'static str, count: u64, limit: u64) -> Result<(), PackageError> {
    if count > limit { Err(PackageError::TooMany { what, count, limit }) } else { Ok(()) }
}

fn unsupported(at: usize, what: &'static str) -> PackageError {
    PackageError::Unsupported { offset: offset(at), what }
}

fn top(frames: &mut [Frame]) -> &mut Frame {
    frames.last_mut().expect("the parser reports a version before any section")
}

/// Sections that define or instantiate something.
fn count_section(payload: &Payload<'_>, frames: &mut [Frame]) -> Result<(), PackageError> {
    let invalid = |error: wasmparser::BinaryReaderError| PackageError::invalid(&error);
    match payload {
        Payload::MemorySection(section) => {
            for memory in section.clone() {
                let memory = memory.map_err(invalid)?;
                if memory.shared || memory.memory64 || memory.page_size_log2.is_some() {
                    return Err(unsupported(section.range().start, "a shared, 64-bit or odd-paged memory"));
                }
                at_most("bytes of memory at the start", memory.initial.saturating_mul(64 * KIB), most().memory_bytes)?;
                top(frames).total.memories += 1;
            }
        }
        Payload::TableSection(section) => {
            for table in section.clone() {
                let table = table.map_err(invalid)?;
                at_most("elements of a table at the start", table.ty.initial, most().table_elements)?;
                top(frames).total.tables += 1;
            }
        }
        Payload::InstanceSection(section) => {
            for instance in section.clone() {
                if let Instance::Instantiate { module_index, .. } = instance.map_err(invalid)? {
                    let frame = top(frames);
                    let module = known(&frame.modules, module_index, section.range().start)?;
                    frame.total.core_instances = frame.total.core_instances.saturating_add(1);
                    frame.total.add_instance_of(&module);
                }
            }
        }
        Payload::ComponentInstanceSection(section) => {
            for instance in section.clone() {
                if let ComponentInstance::Instantiate { component_index, .. } = instance.map_err(invalid)? {
                    let frame = top(frames);
                    let component = known(&frame.components, component_index, section.range().start)?;
                    frame.total.component_instances = frame.total.component_instances.saturating_add(1);
                    frame.total.add_instance_of(&component);
                }
            }
        }
        Payload::ComponentAliasSection(section) => {
            for alias in section.clone() {
                define_alias(&alias.map_err(invalid)?, frames);
                top(frames).check()?;
            }
        }
        Payload::ImportSection(section) if top(frames).is_module => {
            for import in section.clone().into_imports() {
                // An imported memory belongs to somebody who has been counted.
                let import = import.map_err(invalid)?;
                if matches!(import.ty, TypeRef::Memory(memory) if memory.shared) {
                    return Err(unsupported(section.range().start, "a shared memory"));
                }
            }
        }
        Payload::ComponentStartSection { range, .. } => {
            return Err(unsupported(range.start, "a component start function"));
        }
        _ => {}
    }
    Ok(())
}

/// The counts of a definition. One that arrives from outside could be anything, so nothing may be made of it.
fn known(definitions: &[Option<Counts>], index: u32, at: usize) -> Result<Counts, PackageError> {
    let definition = usize::try_from(index).ok().and_then(|index| definitions.get(index));
    match definition {
        Some(Some(counts)) => Ok(*counts),
        Some(None) => Err(unsupported(at, "an instance of an imported module or component")),
        None => Err(PackageError::Invalid { offset: offset(at), message: format!("no definition with index {index}") }),
    }
}

fn define_alias(alias: &ComponentAlias<'_>, frames: &mut [Frame]) {
    match *alias {
        ComponentAlias::InstanceExport { kind, .. } => top(frames).define_unknown(kind),
        ComponentAlias::Outer { kind, count, index } => {
            let level = usize::try_from(count).ok().and_then(|count| (frames.len() - 1).checked_sub(count));
            let index = usize::try_from(index).unwrap_or(usize::MAX);
            let outer = level.and_then(|level| frames.get(level));
            match kind {
                ComponentOuterAliasKind::CoreModule => {
                    let module = outer.and_then(|frame| frame.modules.get(index).copied().flatten());
                    top(frames).modules.push(module);
                }
                ComponentOuterAliasKind::Component => {
                    let component = outer.and_then(|frame| frame.components.get(index).copied().flatten());
                    top(frames).components.push(component);
                }
                ComponentOuterAliasKind::CoreType | ComponentOuterAliasKind::Type => {}
            }
        }
        ComponentAlias::CoreInstanceExport { .. } => {}
    }
}

impl Frame {
    fn check(&self) -> Result<(), PackageError> {
        few("modules", self.modules.len())?;
        few("components", self.components.len())
    }

    fn define_unknown(&mut self, kind: ComponentExternalKind) {
        match kind {
            ComponentExternalKind::Module => self.modules.push(None),
            ComponentExternalKind::Component => self.components.push(None),
            _ => {}
        }
    }

    fn define_unknown_type(&mut self, ty: ComponentTypeRef) {
        match ty {
            ComponentTypeRef::Module(_) => self.modules.push(None),
            ComponentTypeRef::Component(_) => self.components.push(None),
            _ => {}
        }
    }

    /// An export is a definition with an index of its own.
    fn define_again(&mut self, kind: ComponentExternalKind, index: u32) {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        match kind {
            ComponentExternalKind::Module => {
                let module = self.modules.get(index).copied().flatten();
                self.modules.push(module);
            }
            ComponentExternalKind::Component => {
                let component = self.components.get(index).copied().flatten();
                self.components.push(component);
            }
            _ => {}
        }
    }
}
