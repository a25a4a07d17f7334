// A cell's step as a program of vector operations: the int64 tensor that rnn_ext._core.cells
// writes, checked here. Includes no torch.
//
// From u = W_ih x_t + b_ih and v = W_hh y_{t-1} + b_hh, each of `gates` blocks of columns, a cell
// computes the state y_t, which W_hh multiplies in the next step, and further states. All
// operations are elementwise in the unit, so a program runs over any tile of rows and units. If a
// step has further products, each with the next blocks of W_hh, the instruction `product` splits
// the program into phases: each phase runs over all tiles before the next product starts.
//
// The values: a header (the fields of Header in order, filled up to `header_size`), then the
// instructions of the forward and of the backward program, each of `instruction_size` values:
// operation, dst, a, b, c, and the bits of two float64 constants x and y. dst, a, b and c are
// slots, each a value of the arithmetic type for every row and unit of the tile.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <stdexcept>
#include <vector>

namespace rnn_ext {

// In the order of operation_names.
enum class Operation : std::uint8_t {
  load,
  store,
  constant,
  affine,
  neg,
  abs,
  sign,
  floor,
  ceil,
  round,
  trunc,
  sqrt,
  rsqrt,
  reciprocal,
  exp,
  expm1,
  log,
  log1p,
  sin,
  cos,
  tanh,
  sigmoid,
  erf,
  add,
  sub,
  mul,
  div,
  minimum,
  maximum,
  lt,
  le,
  eq,
  ne,
  where,
  fma,      // a·b + c
  fms,      // a·b - c
  fnma,     // c - a·b
  product,  // ends a phase; in forward, a is the gates of the next product
  // Only in the code that kernels run:
  copy,              // dst = a
  subtract_product,  // dst = y - a·b
};

inline constexpr std::array<const char*, 38> operation_names = {
    "load", "store", "constant", "affine",  "neg",     "abs",        "sign", "floor",
    "ceil", "round", "trunc",    "sqrt",    "rsqrt",   "reciprocal", "exp",  "expm1",
    "log",  "log1p", "sin",      "cos",     "tanh",    "sigmoid",    "erf",  "add",
    "sub",  "mul",   "div",      "minimum", "maximum", "lt",         "le",   "eq",
    "ne",   "where", "fma",      "fms",     "fnma",    "product"};

// How many of a, b and c are slots.
constexpr int arity(Operation operation) {
  switch (operation) {
    case Operation::load:
    case Operation::constant:
    case Operation::product:
      return 0;
    case Operation::where:
    case Operation::fma:
    case Operation::fms:
    case Operation::fnma:
      return 3;
    case Operation::copy:
      return 1;
    default:
      return operation >= Operation::add ? 2 : 1;
  }
}

// The kinds of operands that a load or a store accesses; in the order of memory_names.
enum class Memory : std::uint8_t {
  projection,       // u_g
  state,            // before the step
  parameter,        // one value per unit
  input,            // one value per step, row and unit
  saved,            // from the forward pass for the backward pass
  next_state,       // after the step
  grad_next_state,  // the whole gradient of the state after the step
  grad_projection,
  grad_recurrent,  // of v_g
  grad_state,      // of the state before the step, without the part through v
  grad_parameter,
  grad_input,
  yielded,  // the operand of product 1 + k of the step
  grad_yielded,
  passed,  // from one phase to a later one
};

inline constexpr std::array<const char*, 15> memory_names = {
    "projection",     "state",           "parameter",       "input",          "saved",
    "next_state",     "grad_next_state", "grad_projection", "grad_recurrent", "grad_state",
    "grad_parameter", "grad_input",      "yielded",         "grad_yielded",   "passed"};

struct Instruction {
  Operation operation;
  std::uint16_t dst = 0;
  std::uint16_t a = 0;
  std::uint16_t b = 0;  // load, store: the kind of memory
  std::uint16_t c = 0;  // load, store: which of that kind
  double x = 0;
  double y = 0;

  Memory memory() const { return static_cast<Memory>(b); }
};

// The instructions between two products.
using Code = std::vector<Instruction>;

class Program {
 public:
  static constexpr std::int64_t version = 3;
  static constexpr std::int64_t header_size = 16;
  static constexpr std::int64_t instruction_size = 7;
  static constexpr std::int64_t most_slots = 256;

  // Throws std::runtime_error if the values are not a program. After this check, no instruction
  // accesses other slots, or operands that the call does not have.
  Program(const std::int64_t* values, std::int64_t count) {
    const auto check = [](bool holds) {
      if (!holds) {
        throw std::runtime_error("rnn_ext: program is not one that rnn_ext.cell made");
      }
    };
    check(count >= header_size && values[0] == version);
    const auto small = [&](std::int64_t i, std::int64_t least) {
      check(values[i] >= least && values[i] <= most_slots);
      return static_cast<int>(values[i]);
    };
    gates = small(1, 1);
    states = small(2, 1);
    parameters = small(3, 0);
    inputs = small(4, 0);
    saved = small(5, 0);
    merged = values[6] != 0;
    check(states <= 62 && values[7] >= 0 && values[7] < std::int64_t{1} << states &&
          values[7] % 2 == 0);
    kept_states = static_cast<std::uint64_t>(values[7]);
    forward_slots = small(8, 1);
    backward_slots = small(10, 1);
    passed = small(12, 0);
    const std::int64_t forward_length = values[9], backward_length = values[11];
    const std::int64_t room = (count - header_size) / instruction_size;
    check(forward_length >= 0 && forward_length <= room && backward_length >= 0 &&
          backward_length == room - forward_length &&
          room * instruction_size == count - header_size);
    const std::int64_t* at = values + header_size;
    products = {gates};
    for (std::int64_t i = 0; i < forward_length; ++i) {
      const std::int64_t* const instruction = at + i * instruction_size;
      if (instruction[0] == static_cast<std::int64_t>(Operation::product)) {
        check(instruction[2] >= 1 && instruction[2] < products.front());
        products.push_back(static_cast<int>(instruction[2]));
        products.front() -= products.back();
      }
    }
    // A product leaves its gates in the first slots.
    check(*std::max_element(products.begin(), products.end()) <= forward_slots);
    const auto read = [&](std::vector<Code>& phases, std::int64_t length, int slots,
                          bool is_forward) {
      phases.emplace_back().reserve(length);
      for (std::int64_t i = 0; i < length; ++i, at += instruction_size) {
        check(at[0] >= 0 && at[0] < static_cast<std::int64_t>(operation_names.size()));
        const auto operation = static_cast<Operation>(at[0]);
        if (operation == Operation::product) {
          phases.emplace_back();
          continue;
        }
        // A load has its operand in a and b, a store in b and c; from here on both have it in b, c.
        const bool loads = operation == Operation::load;
        const std::int64_t places[4] = {at[1], loads ? 0 : at[2], loads ? at[2] : at[3],
                                        loads ? at[3] : at[4]};
        if (loads || operation == Operation::store) {
          check(places[2] >= 0 && places[2] < static_cast<std::int64_t>(memory_names.size()));
          const auto memory = static_cast<Memory>(places[2]);
          check(can_reach(memory, loads, is_forward) && places[3] >= 0 &&
                places[3] < size_of(memory, is_forward, static_cast<int>(places[3])));
        }
        const int used = arity(operation);
        check(operation == Operation::store || (places[0] >= 0 && places[0] < slots));
        check(used < 1 || (places[1] >= 0 && places[1] < slots));
        check(used < 2 || (places[2] >= 0 && places[2] < slots));
        check(used < 3 || (places[3] >= 0 && places[3] < slots));
        const auto slot = [&](int place, bool is_used) {
          return static_cast<std::uint16_t>(is_used ? places[place] : 0);
        };
        const bool has_memory = loads || operation == Operation::store;
        phases.back().push_back({operation, slot(0, operation != Operation::store),
                                 slot(1, used > 0), slot(2, used > 1 || has_memory),
                                 slot(3, used > 2 || has_memory), std::bit_cast<double>(at[5]),
                                 std::bit_cast<double>(at[6])});
      }
    };
    read(forward, forward_length, forward_slots, true);
    read(backward, backward_length, backward_slots, false);
    // An instruction writes each result of the call and each operand of a product.
    check(stores_all(forward, Memory::next_state) && stores_all(forward, Memory::saved) &&
          stores_all(forward, Memory::yielded));
    if (has_derivative()) {
      check(backward.size() == products.size() && stores_all(backward, Memory::yielded) &&
            stores_all(backward, Memory::grad_recurrent) &&
            (merged || stores_all(backward, Memory::grad_projection)) &&
            stores_all(backward, Memory::grad_parameter) &&
            stores_all(backward, Memory::grad_input));
    }
  }

  bool has_derivative() const { return backward.size() > 1 || !backward.front().empty(); }

  // Whether the code loads or stores operand `index` of this kind.
  static bool loads(const std::vector<Code>& phases, Memory memory, int index) {
    return reaches(phases, Operation::load, memory, index);
  }
  static bool stores(const std::vector<Code>& phases, Memory memory, int index) {
    return reaches(phases, Operation::store, memory, index);
  }

  bool keeps(int state) const { return kept_states >> state & 1; }

  // Returns how many operands of this kind a call has.
  int count(Memory memory) const {
    switch (memory) {
      case Memory::projection:
      case Memory::grad_projection:
      case Memory::grad_recurrent:
        return gates;
      case Memory::parameter:
      case Memory::grad_parameter:
        return parameters;
      case Memory::input:
      case Memory::grad_input:
        return inputs;
      case Memory::saved:
        return saved;
      case Memory::yielded:
      case Memory::grad_yielded:
        return static_cast<int>(products.size()) - 1;
      case Memory::passed:
        return passed;
      default:
        return states;
    }
  }

  int gates = 0;
  int states = 0;
  int parameters = 0;
  int inputs = 0;
  int saved = 0;
  int passed = 0;
  std::vector<int> products;  // the gates of each
  bool merged = false;
  std::uint64_t kept_states = 0;
  int forward_slots = 0;
  int backward_slots = 0;
  std::vector<Code> forward;
  std::vector<Code> backward;

 private:
  static bool reaches(const std::vector<Code>& phases, Operation operation, Memory memory,
                      int index) {
    return std::any_of(phases.begin(), phases.end(), [&](const Code& code) {
      return std::any_of(code.begin(), code.end(), [&](const Instruction& i) {
        return i.operation == operation && i.memory() == memory && i.c == index;
      });
    });
  }

  bool stores_all(const std::vector<Code>& phases, Memory memory) const {
    for (int i = 0; i < count(memory); ++i) {
      if (!stores(phases, memory, i)) {
        return false;
      }
    }
    return true;
  }

  static bool can_reach(Memory memory, bool loads, bool is_forward) {
    switch (memory) {
      case Memory::projection:
        return loads && is_forward;
      case Memory::state:
      case Memory::parameter:
      case Memory::input:
        return loads;
      case Memory::saved:
      case Memory::next_state:
        return loads != is_forward;
      case Memory::grad_next_state:
      case Memory::grad_yielded:
        return loads && !is_forward;
      case Memory::yielded:
        return !loads;
      case Memory::passed:
        return true;
      default:
        return !loads && !is_forward;
    }
  }

  // As count(), without states whose values backward does not have.
  int size_of(Memory memory, bool is_forward, int index) const {
    const bool is_state = memory == Memory::state || memory == Memory::next_state;
    return is_state && !is_forward && index > 0 && index < states && !keeps(index) ? 0
                                                                                   : count(memory);
  }
};

}  // namespace rnn_ext
