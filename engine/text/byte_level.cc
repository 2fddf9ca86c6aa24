#include "engine/text/byte_level.h"

#include "engine/text/utf8.h"

namespace weir {
namespace {

struct Alphabet {
  std::array<char32_t, 256> character{};
  std::array<int, 0x180> byte{};
};

Alphabet MakeAlphabet() {
  Alphabet alphabet;
  alphabet.byte.fill(-1);
  char32_t next = 0x100;
  for (char32_t b = 0; b < 256; ++b) {
    const bool printable =
        (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);
    const char32_t c = printable ? b : next++;
    alphabet.character[b] = c;
    alphabet.byte[c] = static_cast<int>(b);
  }
  return alphabet;
}

const Alphabet kAlphabet = MakeAlphabet();

}  // namespace

char32_t ByteLevelCharacter(uint8_t byte) {
  return kAlphabet.character[byte];
}

std::optional<std::string> ByteLevelDecode(std::string_view piece) {
  std::string bytes;
  bytes.reserve(piece.size());
  for (size_t pos = 0; pos < piece.size();) {
    const char32_t c = NextCodePoint(piece, &pos);
    if (c >= kAlphabet.byte.size() || kAlphabet.byte[c] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(kAlphabet.byte[c]));
  }
  return bytes;
}

std::string ByteLevelEncode(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size() * 2);
  for (const char b : bytes) AppendCodePoint(ByteLevelCharacter(static_cast<uint8_t>(b)), &out);
  return out;
}

}  // namespace weir
