#include "image.h"

#include <turbojpeg.h>

#include <memory>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>

namespace spnas {

namespace {

void CheckSize(int64_t width, int64_t height, int64_t max_pixels) {
  if (width < 1 || height < 1) {
    throw ImageError("has no pixels");
  }
  if (width > max_pixels / height) {
    throw ImageError(std::to_string(width) + "x" + std::to_string(height) + " pixels, more than " +
                     std::to_string(max_pixels));
  }
}

// CMYK as Adobe stores it, inverted, to RGB by the formula of Pillow.
void CmykToRgb(const cv::Mat &cmyk, cv::Mat *rgb) {
  rgb->create(cmyk.size(), CV_8UC3);
  for (int y = 0; y < cmyk.rows; ++y) {
    const auto *from = cmyk.ptr<cv::Vec4b>(y);
    auto *to = rgb->ptr<cv::Vec3b>(y);
    for (int x = 0; x < cmyk.cols; ++x) {
      const int white = from[x][3];
      for (int c = 0; c < 3; ++c) {
        const int product = (255 - from[x][c]) * white + 128;
        to[x][c] = static_cast<uint8_t>(white - ((product >> 8) + product) / 256);
      }
    }
  }
}

cv::Mat DecodeJpeg(const std::string &bytes, int64_t max_pixels) {
  const std::unique_ptr<void, int (*)(tjhandle)> decoder(tjInitDecompress(), tjDestroy);
  const auto *data = reinterpret_cast<const unsigned char *>(bytes.data());
  const auto size = static_cast<unsigned long>(bytes.size());  // NOLINT: the library's type
  const auto fail = [&decoder] {
    throw ImageError(std::string("cannot be decoded (") + tjGetErrorStr2(decoder.get()) + ")");
  };
  int width = 0, height = 0, subsampling = 0, colorspace = 0;
  if (tjDecompressHeader3(decoder.get(), data, size, &width, &height, &subsampling, &colorspace) !=
      0) {
    fail();
  }
  CheckSize(width, height, max_pixels);
  const bool cmyk = colorspace == TJCS_CMYK || colorspace == TJCS_YCCK;
  cv::Mat pixels(height, width, cmyk ? CV_8UC4 : CV_8UC3);
  const auto decode = [&](int flags) {
    return tjDecompress2(decoder.get(), data, size, pixels.data, width,
                         static_cast<int>(pixels.step), height, cmyk ? TJPF_CMYK : TJPF_RGB,
                         flags | TJFLAG_LIMITSCANS) == 0;
  };
  // Stray bytes in front of the end harm nothing, and some ImageNet files have them. Elsewhere they
  // are refused: only the first complaint has a text, and the next one may be of lost pixels.
  const auto stray_at_end = [&decoder] {
    return std::string(tjGetErrorStr2(decoder.get())).find("extraneous bytes before marker 0xd9") !=
           std::string::npos;
  };
  if (!decode(TJFLAG_STOPONWARNING) && !(stray_at_end() && (decode(0) || stray_at_end()))) {
    fail();
  }
  if (!cmyk) {
    return pixels;
  }
  cv::Mat rgb;
  CmykToRgb(pixels, &rgb);
  return rgb;
}

uint32_t Byte(const std::string &bytes, size_t at) {
  return static_cast<unsigned char>(bytes.at(at));
}

// Width and height that a PNG or BMP claims, before memory is taken for them.
void CheckClaimedSize(const std::string &bytes, bool png, int64_t max_pixels) {
  if (bytes.size() < 26) {
    throw ImageError("cut off within its header");
  }
  const auto number = [&](size_t at) {
    return png ? Byte(bytes, at) << 24 | Byte(bytes, at + 1) << 16 | Byte(bytes, at + 2) << 8 |
                     Byte(bytes, at + 3)
               : Byte(bytes, at + 3) << 24 | Byte(bytes, at + 2) << 16 | Byte(bytes, at + 1) << 8 |
                     Byte(bytes, at);
  };
  const auto magnitude = [](uint32_t n) {
    return std::abs(static_cast<int64_t>(static_cast<int32_t>(n)));
  };
  if (!png && number(14) == 12) {  // a BMP of OS/2: two numbers of 16 bits
    CheckSize(number(18) & 0xffff, number(18) >> 16, max_pixels);
    return;
  }
  // A BMP of negative height is stored from top to bottom.
  CheckSize(magnitude(number(png ? 16 : 18)), magnitude(number(png ? 20 : 22)), max_pixels);
}

bool StartsWith(const std::string &bytes, const std::string &magic) {
  return bytes.compare(0, magic.size(), magic) == 0;
}

}  // namespace

cv::Mat DecodeImage(const std::string &bytes, int64_t max_pixels) {
  if (bytes.empty()) {
    throw ImageError("empty");
  }
  if (StartsWith(bytes, "\xff\xd8")) {
    return DecodeJpeg(bytes, max_pixels);
  }
  const bool png = StartsWith(bytes, "\x89PNG\r\n\x1a\n");
  if (!png && !StartsWith(bytes, "BM")) {
    throw ImageError("neither JPEG, PNG nor BMP");
  }
  CheckClaimedSize(bytes, png, max_pixels);
  cv::Mat image;
  try {
    // The bytes are only read; OpenCV's interface takes no constant ones.
    const cv::Mat buffer(1, static_cast<int>(bytes.size()), CV_8UC1,
                         const_cast<char *>(bytes.data()));
    cv::imdecode(buffer, cv::IMREAD_COLOR | cv::IMREAD_IGNORE_ORIENTATION, &image);
  } catch (const cv::Exception &error) {
    throw ImageError("cannot be decoded (" + error.err + ")");
  }
  if (image.empty()) {
    throw ImageError("cannot be decoded");
  }
  cv::cvtColor(image, image, cv::COLOR_BGR2RGB);
  return image;
}

}  // namespace spnas
