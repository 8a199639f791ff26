// Greedy speculative decoding of a bundle of the format "tvm", without Python: prompt ids in, the model's tokens out.
//   run_tvm BUNDLE [--max-new-tokens N] ID...
// Every step evaluates a tree: the last token, and under it what followed earlier occurrences of the last tokens
// (prompt lookup). A token that the model chooses and the tree holds is free. docs/bundle.md says how to build this.
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <future>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "step.h"

using Ints = std::vector<int32_t>;

[[noreturn]] void fail(const std::string &why) {
  std::fprintf(stderr, "run_tvm: %s\n", why.c_str());
  std::exit(2);
}

// Returns zeros at a multiple of 64 bytes, as the code's vector loads require.
float *zeros(int64_t count) {
  size_t bytes = (count * 4 + 64) / 64 * 64;
  if (void *memory = std::aligned_alloc(64, bytes)) return static_cast<float *>(std::memset(memory, 0, bytes));
  fail("there is not enough memory");
}

// An array as TVM's functions take it.
struct Tensor {
  int64_t shape[2];
  DLTensor header;
  Tensor(void *data, uint8_t kind, uint8_t bits, int64_t rows, int64_t columns = 0) : shape{rows, columns} {
    header = {data, {kDLCPU, 0}, columns ? 2 : 1, {kind, bits, 1}, shape, nullptr, 0};
  }
};

// Slots are numbered block by block. The text's blocks come first, in order, so that a position's own slot ("home") is
// the position itself; the slots after them are spare, for rows of a tree whose home another row has.
constexpr int kBlock = FORERUN_BLOCK, kTable = (FORERUN_MAX_LENGTH + kBlock - 1) / kBlock;
constexpr int kSpare = kTable * kBlock, kBlocks = kTable + (FORERUN_MAX_ROWS + kBlock - 1) / kBlock;

struct Rows {  // of one step; paths[r] holds the slots of row r's ancestors below the root, its own the last
  Ints tokens, positions, slots, bases, outputs;
  std::vector<Ints> paths;
};

class Model {
 public:
  explicit Model(const std::string &bundle)
      : module_(tvm::ffi::Module::LoadFromFile(bundle + "/step.so")), run_(*module_->GetFunction("run")) {
    FILE *file = std::fopen((bundle + "/weights.bin").c_str(), "rb");
    if (!file || std::fread(weights_, 4, forerun_weights, file) != size_t(forerun_weights) || std::fgetc(file) != EOF)
      fail(bundle + "/weights.bin does not fit step.h");
    std::fclose(file);
    for (int64_t member = 1; member < threads_; ++member)
      helpers_.push_back(std::async(std::launch::async, *module_->GetFunction("help"), &t_team_.header, member));
  }
  ~Model() { (*module_->GetFunction("dismiss"))(&t_team_.header); }  // so that the helpers' futures end

  // Evaluates rows and returns the largest logit's token of each row in `outputs`.
  Ints step(const Rows &rows) {
    int n = rows.tokens.size(), m = rows.outputs.size(), deepest = 1;
    for (const Ints &path : rows.paths) deepest = std::max<int>(deepest, path.size());
    Ints paths(n * deepest), blocks(kTable);
    for (int row = 0; row < n; ++row) std::copy(rows.paths[row].begin(), rows.paths[row].end(), &paths[row * deepest]);
    std::iota(blocks.begin(), blocks.end(), 0);
    std::map<std::string, Ints> given = {
        {"tokens", rows.tokens}, {"positions", rows.positions}, {"sequences", Ints(n)}, {"slots", rows.slots},
        {"bases", rows.bases},   {"paths", paths},              {"block_tables", blocks}, {"outputs", rows.outputs}};
    for (const forerun_value *each = forerun_step.arguments; each->name; ++each)
      std::copy(given.at(each->name).begin(), given.at(each->name).end(), inputs_ + each->place);
    std::map<std::string, int32_t> sizes = {{"N", n}, {"M", m}, {"D", deepest}, {"S", 1}, {"B", kTable}};
    for (int i = 0; forerun_step.sizes[i]; ++i) sizes_[i] = sizes[forerun_step.sizes[i]];
    run_(&calls_.header, &t_sizes_.header, &t_weights_.header, &t_tables_.header, &t_numbers_.header,
         &t_indices_.header, &t_state_.header, &t_request_.header, &t_inputs_.header, forerun_step.first,
         forerun_step.last, &t_team_.header);
    Ints best(m);
    const float *logits = arena_ + forerun_step.results[0].place;
    for (int row = 0; row < m; ++row, logits += FORERUN_VOCABULARY)
      best[row] = std::max_element(logits, logits + FORERUN_VOCABULARY) - logits;  // the lowest id on ties
    return best;
  }

  // Copies what all states hold at slot `from` to slot `to`.
  void move(int from, int to) {
    for (const forerun_state *each = forerun_states; each->name; ++each) {
      auto place = [&](int at) { return at / kBlock * forerun_record + each->place + at % kBlock * each->slot_stride; };
      float *source = state_ + place(from), *target = state_ + place(to);
      for (int64_t row = 0; row < each->lead; ++row)
        for (int64_t i = 0, at; i < each->last; ++i)
          at = row * each->lead_stride + i * each->stride, target[at] = source[at];
    }
  }

 private:
  tvm::ffi::Module module_;
  tvm::ffi::Function run_;
  int64_t threads_ = std::max(1u, std::thread::hardware_concurrency());
  int32_t sizes_[16] = {};
  float *weights_ = zeros(forerun_weights), *arena_ = zeros(forerun_arena);
  float *state_ = zeros(kBlocks * forerun_record), *request_ = zeros(forerun_request);
  int32_t *inputs_ = reinterpret_cast<int32_t *>(zeros(forerun_inputs));
  Tensor calls_{const_cast<int64_t(*)[sizeof *forerun_calls / 8]>(forerun_calls), kDLInt, 64,
                sizeof forerun_calls / sizeof *forerun_calls, sizeof *forerun_calls / 8};
  Tensor t_sizes_{sizes_, kDLInt, 32, 16}, t_weights_{weights_, kDLFloat, 32, forerun_weights};
  Tensor t_tables_{weights_, kDLInt, 32, forerun_weights}, t_numbers_{arena_, kDLFloat, 32, forerun_arena};
  Tensor t_indices_{arena_, kDLInt, 32, forerun_arena}, t_state_{state_, kDLFloat, 32, kBlocks * forerun_record};
  Tensor t_request_{request_, kDLFloat, 32, std::max<int64_t>(1, forerun_request)};
  Tensor t_inputs_{inputs_, kDLInt, 32, forerun_inputs};
  Tensor t_team_{zeros(2 * (threads_ + 2) * FORERUN_LINE), kDLInt, 64, threads_ + 2, FORERUN_LINE};
  std::vector<std::future<tvm::ffi::Any>> helpers_;
};

struct Tree {  // row 0 is the root; a row comes after its parent
  Ints token, parent{-1}, depth{0};
  explicit Tree(int root) : token{root} {}
  int child(int row, int wanted) const {
    for (size_t each = row + 1; each < token.size(); ++each)
      if (parent[each] == row && token[each] == wanted) return each;
    return -1;
  }
};

// Merges what followed the latest occurrences of the text's longest suffix, of at most 4 tokens, into one tree. What
// reaches the end of the text goes on into itself.
Tree lookup(const Ints &text, size_t most_rows, int deepest) {
  Tree tree(text.back());
  int size = text.size();
  for (int length = std::min(4, size - 1); length > 0 && tree.token.size() == 1; --length)
    for (int end = size - 2; end >= length - 1; --end) {
      if (!std::equal(text.end() - length, text.end(), text.begin() + end + 1 - length)) continue;
      Ints longer = text;
      for (int at = end + 1, row = 0, found; tree.depth[row] < deepest; ++at, row = found) {
        longer.push_back(longer[at]);
        if ((found = tree.child(row, longer[at])) >= 0) continue;
        if (tree.token.size() == most_rows) return tree;
        found = tree.token.size();
        tree.token.push_back(longer[at]), tree.parent.push_back(row), tree.depth.push_back(tree.depth[row] + 1);
      }
    }
  return tree;
}

int main(int count, char **arguments) {
  int new_tokens = 32;
  Ints text;
  if (forerun_request) fail("this model reads more than tokens, or has recurrent states");
  for (int i = 2; i < count; ++i)
    if (std::string(arguments[i]) == "--max-new-tokens" && i + 1 < count) new_tokens = std::atoi(arguments[++i]);
    else text.push_back(std::atoi(arguments[i]));
  if (text.empty()) fail("usage: run_tvm BUNDLE [--max-new-tokens N] ID...");
  size_t prompt = text.size(), wanted = prompt + new_tokens;
  if (wanted > FORERUN_MAX_LENGTH) fail("prompt and new tokens exceed the bundle's max_length");
  Model model(arguments[1]);

  for (size_t start = 0; start + 1 < prompt; start += FORERUN_MAX_ROWS) {  // the prompt without its last token
    Rows rows;
    for (size_t at = start; at + 1 < prompt && at < start + FORERUN_MAX_ROWS; ++at) {
      rows.tokens.push_back(text[at]), rows.positions.push_back(at), rows.slots.push_back(at);
      rows.bases.push_back(at + 1), rows.paths.emplace_back();
    }
    rows.outputs = {int(rows.tokens.size()) - 1};
    model.step(rows);
  }

  int steps = 0;
  for (bool ended = new_tokens < 1; !ended; ++steps) {
    int root = text.size() - 1;  // the position of the last token, which no step has evaluated yet
    Tree tree = lookup(text, std::min<int>(16, FORERUN_MAX_OUTPUTS),
                       std::min<int>(FORERUN_MAX_PATH, wanted - text.size() - 1));
    Rows rows;
    rows.tokens = tree.token;
    for (int row = 0, spare = kSpare; row < int(tree.token.size()); ++row) {
      bool first = std::find(tree.depth.begin(), tree.depth.begin() + row, tree.depth[row]) == tree.depth.begin() + row;
      rows.positions.push_back(root + tree.depth[row]), rows.outputs.push_back(row), rows.bases.push_back(root + 1);
      rows.slots.push_back(first ? root + tree.depth[row] : spare++);
      rows.paths.push_back(row && tree.parent[row] ? rows.paths[tree.parent[row]] : Ints());
      if (row) rows.paths[row].push_back(rows.slots[row]);
    }
    Ints chosen = model.step(rows);
    size_t before = text.size();
    for (int row = 0; row >= 0 && !ended; row = tree.child(row, text.back())) {  // follow what the model chooses
      if (rows.slots[row] != rows.positions[row]) model.move(rows.slots[row], rows.positions[row]);
      text.push_back(chosen[row]);
      for (const int32_t *eos = forerun_eos; *eos >= 0; ++eos) ended |= *eos == text.back();
      ended |= text.size() == wanted;
    }
    std::fprintf(stderr, "step %d: %zu rows, %zu tokens\n", steps + 1, tree.token.size(), text.size() - before);
  }
  for (size_t at = prompt; at < text.size(); ++at) std::printf("%d%s", text[at], at + 1 < text.size() ? " " : "\n");
  std::fprintf(stderr, "%zu tokens in %d steps\n", text.size() - prompt, steps);
}
