//! An adapter on the device: its factors as unpadded matrices in flat buffers, and for training their gradients and moments
//! at the same places of buffers beside them, so that clipping and AdamW are one pass over each.

use std::ops::Index;

use crate::gpu::{Buffers, Category, Gpu, GpuError, MemoryPlan, View};
use crate::lora::factors::{AdapterTensors, Factor, FactorSpec, ModuleFactors, factors};
use crate::lora::targets::{self, LoraModule};
use crate::model::config::ModelConfig;
use crate::model::modules::Projection;
use crate::network::moments::{HostMoment, MomentStorage, Moments};
use crate::ops::dora;
use crate::ops::rows::NO_ROW;
use crate::ops::weight::{Panel, Weight};
use crate::quant::format::{Float, Storage};

/// The sizes and choices that decide the buffers of an adapter.
#[derive(Clone, Copy, Debug)]
pub struct AdapterSizes {
    /// Rows of the largest pass.
    pub rows: usize,
    /// Storage of the moments; `None` plans the values alone.
    pub training: Option<MomentStorage>,
    /// True if the factors with LoRA+'s learning rate have segments of their own.
    pub loraplus: bool,
    /// The longest segment, in bytes.
    pub max_segment_bytes: u64,
}

/// A range of the adapter's parameters that one binding covers.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// The values, f32, one factor after the other.
    pub params: View,
    /// Gradients and moments; `None` outside training.
    pub training: Option<TrainingState>,
    /// True for factors that have LoRA+'s learning rate.
    pub raised: bool,
    /// False for factors that weight decay leaves alone.
    pub decays: bool,
}

/// Gradients and moments of a segment, each at the place of its parameter.
#[derive(Clone, Copy, Debug)]
pub struct TrainingState {
    /// Gradients, f32.
    pub grads: View,
    /// AdamW's two moments.
    pub moments: Moments,
}

/// One factor on the device.
#[derive(Clone, Debug)]
pub struct DeviceFactor {
    /// The part that it plays.
    pub factor: Factor,
    /// The factor as the frozen weight of a contraction of its own: A is `[rank, in_features]`, B `[out_features, rank]`.
    pub weight: Weight,
    /// The values, f32, row by row without padding.
    pub values: View,
    /// The gradient, laid out as `values`; `None` outside training.
    pub gradient: Option<View>,
    /// Its rows in the segments; none where they are another module's.
    pieces: Vec<Piece>,
}

/// Rows of a factor within one segment.
#[derive(Clone, Copy, Debug)]
struct Piece {
    values: View,
    gradient: Option<View>,
    segment: usize,
    /// The place of its first element in the segment, in elements.
    first: usize,
    elements: usize,
}

impl DeviceFactor {
    /// The gradient of a panel of its weight.
    ///
    /// # Panics
    /// Outside training, and for a view that is no panel of it.
    pub fn gradient_of(&self, panel: View) -> View {
        let piece = self.pieces.iter().find(|piece| piece.values == panel);
        piece.and_then(|piece| piece.gradient).expect("a trained factor has a gradient for each panel")
    }
}

/// The rows of the embedding and the head that an adapter replaces.
#[derive(Clone, Debug)]
struct TokenRows {
    tokens: Vec<u32>,
    /// For each row of a pass the place of its token among `tokens`, or [`NO_ROW`].
    mapped: View,
    /// The rows of a pass sorted by that; `None` outside training.
    order: Option<View>,
}

/// The tokens whose columns of the logits come from rows of the adapter.
#[derive(Clone, Copy, Debug)]
pub struct HeadRows<'a> {
    /// The tokens, u32.
    pub tokens: View,
    /// Their rows.
    pub factor: &'a DeviceFactor,
}

/// The rows of a pass by token, for gradients of the embedding.
#[derive(Clone, Copy, Debug)]
pub struct RowOrder {
    /// One u32 for each row: its token, or the place of its token among those of the adapter.
    pub tokens: View,
    /// The rows sorted by that, u32; `None` outside training.
    pub order: Option<View>,
}

/// One LoRA module on the device.
#[derive(Clone, Debug)]
pub struct DeviceModule {
    /// Columns of `x A^T`.
    pub rank: u32,
    /// Factor of `x A^T B^T`: alpha / rank, or alpha / sqrt(rank) with rank-stabilized scaling.
    pub scale: f32,
    /// A number that no other module has, so that the dropout masks of modules differ.
    pub site: u32,
    /// Its factors, in the order of [`factors`].
    pub factors: Vec<DeviceFactor>,
    /// The vectors of its outputs under DoRA.
    pub outputs: Option<dora::Outputs>,
    /// The sum of the module's bias and that of B, where B has one.
    pub bias_sum: Option<View>,
}

impl DeviceModule {
    /// True if LoRA adapts the module; else it has copies alone.
    pub fn is_adapted(&self) -> bool {
        self.factor(Factor::A).is_some()
    }

    /// The factor of this kind, where the module has one.
    pub fn factor(&self, factor: Factor) -> Option<&DeviceFactor> {
        self.factors.iter().find(|own| own.factor == factor)
    }

    /// The vectors of DoRA and its magnitudes.
    pub fn dora(&self) -> Option<(dora::Outputs, &DeviceFactor)> {
        self.outputs.zip(self.factor(Factor::Magnitude))
    }
}

impl Index<Factor> for DeviceModule {
    type Output = DeviceFactor;

    fn index(&self, factor: Factor) -> &Self::Output {
        &self.factors[factor as usize]
    }
}

/// The place of a factor in the segments, before these have buffers: for each piece its rows, its segment, and the bytes from the
/// segment's beginning.
struct Place {
    spec: FactorSpec,
    pieces: Vec<(usize, usize, u64)>,
}

impl Place {
    fn on_device(self, segments: &[Segment]) -> DeviceFactor {
        let Self { spec, pieces } = self;
        let [rows, cols] = spec.shape;
        let piece = |(rows, segment, offset): (usize, usize, u64)| {
            let Segment { params, training, .. } = segments[segment];
            let elements = rows * cols;
            // Bindings cover whole vectors of 16 bytes; the bytes up to there are the factor's own padding.
            let bytes = (4 * elements as u64).next_multiple_of(16).min(params.bytes - offset);
            Piece {
                values: params.slice(offset, bytes),
                gradient: training.map(|t| t.grads.slice(offset, bytes)),
                segment,
                first: (offset / 4) as usize,
                elements,
            }
        };
        let pieces: Vec<Piece> = pieces.into_iter().map(piece).collect();
        let mut first_row = 0;
        let panel = |piece: &Piece| {
            let rows = (piece.elements / cols.max(1)) as u32;
            first_row += rows;
            Panel { first_row: first_row - rows, rows, data: piece.values, absmax: None, nested: None }
        };
        DeviceFactor {
            factor: spec.factor,
            weight: Weight {
                storage: Storage::Float(Float::F32),
                out_features: rows as u32,
                in_features: cols as u32,
                panels: pieces.iter().map(panel).collect(),
                bias: None,
            },
            values: pieces[0].values,
            gradient: pieces[0].gradient,
            pieces,
        }
    }
}

/// Rows of a factor that go into one segment: all, or whole blocks of 8-bit moments.
fn rows_of_piece([rows, cols]: [usize; 2], max_segment_bytes: u64) -> usize {
    const BLOCK_ROWS: usize = 256;
    if 4 * (rows * cols) as u64 <= max_segment_bytes {
        return rows.max(1);
    }
    let fitting = (max_segment_bytes / (4 * cols as u64)) as usize;
    (fitting / BLOCK_ROWS * BLOCK_ROWS).max(BLOCK_ROWS)
}

/// The storage of the moments of a factor, where the run's setting is `asked`. Those of a whole embedding stay in f32, as in full
/// training.
pub fn moment_storage(asked: MomentStorage, place: targets::Place, factor: Factor, elements: usize) -> MomentStorage {
    match (place, factor, asked) {
        (targets::Place::Embedding, Factor::Whole, MomentStorage::EightBit) => MomentStorage::F32,
        _ => asked.of_tensor(elements),
    }
}

/// The factors of an adapter on the device, with gradients and moments in training.
#[derive(Clone, Debug)]
pub struct DeviceAdapter {
    /// The ranges that hold the factors of all modules.
    pub segments: Vec<Segment>,
    /// By [`slot`], then the embedding and the head; None where nothing is trained.
    modules: Vec<Option<DeviceModule>>,
    /// The modules in the order of the adapter's file, as indices into `modules`.
    order: Vec<usize>,
    /// Rows of tokens of the embedding, and of a head of its own.
    rows: Option<TokenRows>,
    head_tokens: Option<(Vec<u32>, View)>,
    tied: bool,
    /// The rows of a pass sorted by token, where the gradient of the whole embedding or its LoRA needs it.
    row_order: Option<View>,
}

fn slot(layer: usize, projection: Projection) -> usize {
    layer * Projection::ALL.len() + projection as usize
}

impl DeviceAdapter {
    /// Plans the buffers of `modules`.
    pub fn plan(plan: &mut MemoryPlan, modules: &[LoraModule], model: &ModelConfig, sizes: AdapterSizes) -> Self {
        let AdapterSizes { rows, training, loraplus, max_segment_bytes } = sizes;
        // Places come before buffers: a segment is as long as the factors in it, and these have one storage of their moments and one
        // learning rate.
        let mut lengths: Vec<((MomentStorage, bool, bool), u64)> = Vec::new();
        let mut place = |module: &LoraModule, spec: FactorSpec| {
            let asked = training.unwrap_or(MomentStorage::F32);
            let moments = moment_storage(asked, module.place, spec.factor, spec.elements());
            let kind = (moments, loraplus && spec.factor.is_raised(), spec.factor.decays());
            let [rows, cols] = spec.shape;
            let most = rows_of_piece(spec.shape, max_segment_bytes);
            let starts = (0..rows.max(1)).step_by(most);
            let pieces = starts.map(|first| {
                let rows = most.min(rows - first);
                let bytes = 4 * (rows * cols) as u64;
                let newest = lengths.iter().rposition(|(of, _)| *of == kind);
                let open = newest.filter(|at| lengths[*at].1 + bytes <= max_segment_bytes);
                let segment = open.unwrap_or_else(|| {
                    lengths.push((kind, 0));
                    lengths.len() - 1
                });
                let offset = lengths[segment].1;
                lengths[segment].1 = (offset + bytes).next_multiple_of(moments.tensor_alignment());
                (rows, segment, offset)
            });
            Place { pieces: pieces.collect(), spec }
        };
        let places: Vec<Vec<Place>> = modules
            .iter()
            .map(|module| factors(module).into_iter().map(|spec| place(module, spec)).collect())
            .collect();
        let segments: Vec<Segment> = lengths
            .iter()
            .map(|((moments, raised, decays), bytes)| Segment {
                raised: *raised,
                decays: *decays,
                params: plan.alloc(Category::Adapter, "LoRA factors", *bytes),
                training: training.map(|_| TrainingState {
                    grads: plan.alloc(Category::Gradients, "LoRA gradients", *bytes),
                    moments: Moments::plan(plan, *moments, *bytes),
                }),
            })
            .collect();
        let mut adapted: Vec<Option<DeviceModule>> = vec![None; model.num_layers * Projection::ALL.len() + 2];
        let mut order: Vec<usize> = Vec::new();
        for (module, places) in modules.iter().zip(places) {
            let at = match module.place {
                targets::Place::Layer(layer, projection) => slot(layer, projection),
                targets::Place::Embedding => adapted.len() - 2,
                targets::Place::Head => adapted.len() - 1,
            };
            // Masks of dropout depend on it: the number of a module must stay as it is.
            let number = match module.place {
                targets::Place::Layer(layer, projection) => layer * Projection::MOST_OF_LAYER + projection.number(),
                targets::Place::Embedding => model.num_layers * Projection::MOST_OF_LAYER,
                targets::Place::Head => model.num_layers * Projection::MOST_OF_LAYER + 1,
            };
            let owner = order.last().filter(|_| module.shares_a).and_then(|last| adapted[*last].clone());
            let factors = places.into_iter().map(|place| match &owner {
                Some(owner) if place.spec.factor == Factor::A => {
                    DeviceFactor { pieces: Vec::new(), ..owner[Factor::A].clone() }
                }
                _ => place.on_device(&segments),
            });
            let outputs = module.factors.contains(&Factor::Magnitude).then(|| {
                let bytes = 4 * module.features[0] as u64;
                let [squares, factors, inverses] =
                    ["squared norms", "DoRA factors", "inverse norms"].map(|l| plan.alloc(Category::Adapter, l, bytes));
                dora::Outputs { squares, factors, inverses }
            });
            let bias_sum = module
                .factors
                .contains(&Factor::LoraBias)
                .then(|| plan.alloc(Category::Adapter, "sum of biases", 4 * module.features[0] as u64));
            adapted[at] = Some(DeviceModule {
                bias_sum,
                outputs,
                rank: module.rank as u32,
                scale: module.scale,
                // One A reads one input: its mask is the same for all parts.
                site: owner.as_ref().map_or(number as u32, |owner| owner.site),
                factors: factors.collect(),
            });
            order.push(at);
        }
        let mut words = |label: &str, count: usize| plan.alloc(Category::Uploads, label, 4 * count as u64);
        let tokens_of = |place| modules.iter().find(|module| module.place == place && !module.tokens.is_empty());
        let token_rows = tokens_of(targets::Place::Embedding).map(|module| TokenRows {
            tokens: module.tokens.clone(),
            mapped: words("places of trained tokens", rows),
            order: training.map(|_| words("rows by trained token", rows)),
        });
        let tied = model.tie_word_embeddings;
        let of_head = tokens_of(targets::Place::Head).or_else(|| tokens_of(targets::Place::Embedding).filter(|_| tied));
        let head_tokens = of_head.map(|module| (module.tokens.clone(), words("trained tokens", module.tokens.len())));
        let gathers = |module: &LoraModule| {
            module.factors.iter().any(|factor| {
                *factor == Factor::EmbeddingA || module.place == targets::Place::Embedding && *factor == Factor::Whole
            })
        };
        let row_order =
            training.filter(|_| modules.iter().any(gathers)).map(|_| words("rows by token of the adapter", rows));
        Self { segments, modules: adapted, order, rows: token_rows, head_tokens, tied, row_order }
    }

    /// The embedding, where anything of it is trained.
    pub fn embedding(&self) -> Option<&DeviceModule> {
        self.modules.get(self.modules.len().checked_sub(2)?)?.as_ref()
    }

    /// The head, where anything of it alone is trained.
    pub fn head(&self) -> Option<&DeviceModule> {
        self.modules.last()?.as_ref()
    }

    /// The rows of tokens that the head has from the adapter: its own, or those of a tied embedding.
    pub fn head_rows(&self) -> Option<HeadRows<'_>> {
        let (_, tokens) = self.head_tokens.as_ref()?;
        let own = self.head().and_then(|module| module.factor(Factor::Rows));
        let shared = || self.embedding().filter(|_| self.tied).and_then(|module| module.factor(Factor::Rows));
        Some(HeadRows { tokens: *tokens, factor: own.or_else(shared)? })
    }

    /// True if the head has rows of the adapter for tokens from this one on.
    pub fn has_token_from(&self, first: u32) -> bool {
        self.head_tokens.as_ref().is_some_and(|(tokens, _)| tokens.iter().any(|token| *token >= first))
    }

    /// The rows of a pass by the place of their token among the trained ones.
    pub fn token_rows(&self) -> Option<RowOrder> {
        self.rows.as_ref().map(|rows| RowOrder { tokens: rows.mapped, order: rows.order })
    }

    /// The rows of a pass sorted by token, where a gradient of the embedding needs it.
    pub fn row_order(&self) -> Option<View> {
        self.row_order
    }

    /// Uploads what the adapter needs of the tokens of a pass.
    pub fn write_inputs(&self, gpu: &Gpu, buffers: &Buffers, tokens: &[u32]) {
        let write = |view: View, words: &[u32]| gpu.write(buffers, view, bytemuck::cast_slice(words));
        let sorted = |keys: &[u32]| {
            let mut order: Vec<u32> = (0..keys.len() as u32).collect();
            order.sort_by_key(|row| keys[*row as usize]);
            order
        };
        if let Some(rows) = &self.rows {
            let place = |token: &u32| rows.tokens.iter().position(|own| own == token);
            let mapped: Vec<u32> =
                tokens.iter().map(|token| place(token).map_or(NO_ROW, |place| place as u32)).collect();
            write(rows.mapped, &mapped);
            if let Some(order) = rows.order {
                write(order, &sorted(&mapped));
            }
        }
        if let Some(order) = self.row_order {
            write(order, &sorted(tokens));
        }
    }

    /// The module at this place; `None` where the projection has no adapter.
    pub fn module(&self, layer: usize, projection: Projection) -> Option<&DeviceModule> {
        self.modules.get(slot(layer, projection))?.as_ref()
    }

    /// The modules of DoRA, with their places.
    pub fn dora_modules(&self) -> impl Iterator<Item = (usize, Projection, &DeviceModule)> {
        self.layer_modules().filter(|(_, _, module)| module.outputs.is_some())
    }

    /// The modules of the layers, with their places.
    pub fn layer_modules(&self) -> impl Iterator<Item = (usize, Projection, &DeviceModule)> {
        let (count, layers) = (Projection::ALL.len(), self.modules.len().saturating_sub(2));
        self.order.iter().filter(move |at| **at < layers).filter_map(move |at| {
            let module = self.modules[*at].as_ref()?;
            Some((at / count, Projection::ALL[at % count], module))
        })
    }

    /// The modules in the order of the file.
    pub fn modules(&self) -> impl Iterator<Item = &DeviceModule> {
        self.order.iter().filter_map(|at| self.modules[*at].as_ref())
    }

    /// The lowest layer with a module, or the number of layers where only the head has one; nothing below needs a gradient, unless the
    /// embedding is trained.
    pub fn lowest_layer(&self) -> usize {
        let layers = self.modules.len().saturating_sub(2);
        let lowest = self.modules[..layers].iter().position(Option::is_some);
        lowest.unwrap_or(if self.head().is_some() { layers } else { 0 }) / Projection::ALL.len()
    }

    /// The largest rank of all modules; 0 where there are none.
    pub fn largest_rank(&self) -> u32 {
        self.modules().map(|m| m.rank).max().unwrap_or(0)
    }

    /// Uploads the factors that have values. `tensors` has the modules in the order of [`Self::modules`].
    pub fn write(&self, gpu: &Gpu, buffers: &Buffers, tensors: &AdapterTensors) {
        for (factor, values) in self.factors().zip(tensors.values()).filter(|(_, values)| !values.is_empty()) {
            let mut rest = values.as_slice();
            for piece in &factor.pieces {
                let (values, after) = rest.split_at(piece.elements);
                if !values.is_empty() {
                    gpu.write(buffers, piece.values, bytemuck::cast_slice(values));
                }
                rest = after;
            }
        }
        if let Some((tokens, view)) = &self.head_tokens {
            gpu.write(buffers, *view, bytemuck::cast_slice(tokens));
        }
    }

    fn factors(&self) -> impl Iterator<Item = &DeviceFactor> {
        self.modules().flat_map(|module| &module.factors)
    }

    /// Both moments of every factor as they are on the device now, module by module; none outside training.
    ///
    /// # Errors
    /// A failing device.
    pub async fn read_moments(&self, gpu: &Gpu, buffers: &Buffers) -> Result<Vec<[HostMoment; 2]>, GpuError> {
        let mut whole: Vec<[Option<HostMoment>; 2]> = self.factors().map(|_| [None, None]).collect();
        for (at, segment) in self.segments.iter().enumerate() {
            let Some(training) = segment.training else { return Ok(Vec::new()) };
            for moment in 0..2 {
                // One at a time: a browser has little memory.
                let values = training.moments.read_one(gpu, buffers, moment).await?;
                for (factor, whole) in self.factors().zip(&mut whole) {
                    for Piece { first, elements, .. } in factor.pieces.iter().filter(|piece| piece.segment == at) {
                        let part = values.part(*first, *elements);
                        match &mut whole[moment] {
                            None => whole[moment] = Some(part),
                            Some(before) => before.append(part),
                        }
                    }
                }
            }
        }
        // An A of another module has no moments of its own.
        let own = |moment: Option<HostMoment>| moment.unwrap_or(HostMoment::F32(Vec::new()));
        Ok(whole.into_iter().map(|pair| pair.map(own)).collect())
    }

    /// Sets moments that [`Self::read_moments`] has given.
    pub fn write_moments(&self, gpu: &Gpu, buffers: &Buffers, factors: &[[HostMoment; 2]]) {
        for (at, Segment { params, training, .. }) in self.segments.iter().enumerate() {
            let Some(TrainingState { moments, .. }) = training else { continue };
            let elements = (params.bytes / 4) as usize;
            let mut values = [0, 1].map(|i| HostMoment::zeros(moments.storage(), i, elements));
            for (factor, from) in self.factors().zip(factors) {
                let mut done = 0;
                for piece in &factor.pieces {
                    if piece.segment == at && piece.elements > 0 {
                        for (values, from) in values.iter_mut().zip(from) {
                            values.place(piece.first, &from.part(done, piece.elements));
                        }
                    }
                    done += piece.elements;
                }
            }
            moments.write(gpu, buffers, &values);
        }
    }

    /// The factors as they are on the device now.
    ///
    /// # Errors
    /// A failing device.
    pub async fn read(&self, gpu: &Gpu, buffers: &Buffers) -> Result<AdapterTensors, GpuError> {
        self.read_factors(gpu, buffers, |piece| Some(piece.values)).await
    }

    /// The gradients as they are on the device now; None outside training.
    ///
    /// # Errors
    /// A failing device.
    pub async fn read_gradients(&self, gpu: &Gpu, buffers: &Buffers) -> Result<AdapterTensors, GpuError> {
        self.read_factors(gpu, buffers, |piece| piece.gradient).await
    }

    async fn read_factors(
        &self,
        gpu: &Gpu,
        buffers: &Buffers,
        view: impl Fn(&Piece) -> Option<View>,
    ) -> Result<AdapterTensors, GpuError> {
        let mut modules = Vec::new();
        for module in self.modules() {
            let mut read = Vec::new();
            for factor in &module.factors {
                let mut values = Vec::new();
                for piece in factor.pieces.iter().filter(|piece| piece.elements > 0) {
                    if let Some(view) = view(piece) {
                        let part = gpu.read_f32(buffers, view).await?;
                        values.extend_from_slice(&part[..piece.elements]);
                    }
                }
                read.push(values);
            }
            modules.push(ModuleFactors(read));
        }
        Ok(AdapterTensors { modules })
    }
}
