#pragma once

namespace weir::cpu {

// The polynomial of elementwise.h's Exp: Cody-Waite reduction by ln 2 in two parts (Cephes expf).
// Changing any of these changes tokens.
inline constexpr float kExpLow = -0x1.5d589ep+6f;  // -87.33654, ln of the least normal
inline constexpr float kExpHigh = 0x1.601e68p+6f;  // 88.029694, ln 2^127
inline constexpr float kLog2e = 0x1.715476p+0f;
inline constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
inline constexpr float kLn2High = 0.693359375f;
inline constexpr float kLn2Low = -2.12194440e-4f;
inline constexpr float kExpPoly[8] = {1.9875691500e-4f,
                                      1.3981999507e-3f,
                                      8.3334519073e-3f,
                                      4.1665795894e-2f,
                                      1.6666665459e-1f,
                                      5.0000001201e-1f,
                                      1.0f,
                                      1.0f};

}  // namespace weir::cpu
