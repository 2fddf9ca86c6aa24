// The byte alphabet of GPT-2: each of the 256 bytes is written as one printable character
// (Radford et al. 2019, encoder.py, bytes_to_unicode).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace weir {

// The character that stands for |byte|.
char32_t ByteLevelCharacter(uint8_t byte);

// The bytes that |piece| (valid UTF-8) stands for, or nullopt if a character is not in the
// alphabet.
std::optional<std::string> ByteLevelDecode(std::string_view piece);

// |bytes| written in the alphabet.
std::string ByteLevelEncode(std::string_view bytes);

}  // namespace weir
